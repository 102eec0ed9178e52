// The fixed point of the published schedule for labels of size O(1/n), docs/method.md 3c; the derivation is in
// kpl_engine/solver/closed_form.py, the twin.
//
//   e_j = (c tau_i / n) (S + tau_i mu I)^-1 D_j,  W_j = unit(-u + dbar + e_j), then corrections
//   W_j <- unit(W_j + shared + tau_i mu (S + tau_i mu I)^-1 (gap_j - shared)),  gap_j = unit(-G_j) - W_j
//
// X (n, d) float32, P (n, c) float64 -> W (c, d) float64 and the record; reads record.num_hardened. One team of blocks a
// problem (conjugate_team.cuh); teams take the problems in turn.
//
// Conjugate gradients instead of a factor: a Cholesky of n = 662 has 21 panels of 32, each with a few meetings of the
// team, and every solve with it 42 more. S + tau_i mu I has a condition number of at most 1 + (1 - mu²)/(tau_i mu),
// below 20 wherever 2000 steps arrive; of CLIP-like features it is 2 to 12. The matrix is only the slope of the
// corrections, so its solution is wanted to 1/100 of the 1/n by which a correction contracts, in float32: counted 3 to 6
// iterations of two meetings a solve, 8 to 23 in all. Where that fails, all is done again in float64 to 1e-13, as the
// twin does. The gradient is float64 always, without the parts that classes share, and of c - 1 columns only:
// G_j = (n/c) mean + Xᵀ(softmax_j - 1/c) - XtP_j.
//
// Flops: 4 n d (c - 1) a pass, 12 to 28 passes, those of the gradient in float64. Bytes: X once from memory, then from
// shared memory where it fits. H200, (662, 768, 2), 16 blocks of 42 rows: a pass moves 290 KB through the shared memory
// of a block at 128 bytes a clock, 1.3 us; two meetings and four trips to L2 are 2.8 us; 12 iterations, 4 gradients and
// what is between them: predicted 0.10 ms as a cluster, 0.16 ms as a cooperative grid of 42 blocks; n = 1000 0.02 ms
// more. (27558, 768, 2) streams 85 MB a pass, about 21 us: predicted 0.4 ms.
#include "device/conjugate_fit.cuh"
#include "device/conjugate_sums.cuh"

namespace kpl::conjugate {
namespace {

constexpr double kTolerance = 1e-9;  // as in the twin
constexpr int kMaxCorrections = 5;

/// F <- D and common <- their mean, `size` their lengths. Returns the first class with the very labels of the last, or
/// -1: their proxies are the same, to the last bit (G depends on P through XtP alone).
__device__ __noinline__ int first_residual(Fit& fit) {
  const int c = fit.c, m = fit.m, padded = fit.rows.padded;
  team_sums(fit.team, 2 * c, fit.first_column, fit.last_column, [&](int q, int k) {
    const double value = fit.XtP[q % c * padded + k];
    return q < c ? fit.mean[k] * value : value != fit.XtP[m * padded + k] ? 1.0 : 0.0;
  });
  int same = -1;
  for (int j = m - 1; j >= 0; --j)
    if (fit.team.totals[c + j] == 0.0) same = j;
  for (int k = fit.first_column + thread(); k < fit.last_column; k += kThreads) {
    double average = 0.0;
    for (int j = 0; j < c; ++j) {
      const double across = fit.XtP[j * padded + k] - fit.team.totals[j] / fit.mu * direction(fit, k);
      fit.F[j * padded + k] = across;
      average += across;
    }
    average /= c;
    for (int j = 0; j < c; ++j) fit.F[j * padded + k] -= average;
    fit.common[k] = average;
  }
  __syncthreads();
  // Where classes have all but equal labels F is rounding, and rounding need not be orthogonal to u.
  team_sums(fit.team, 2 * m, fit.first_column, fit.last_column, [&](int q, int k) {
    const double value = fit.F[q % m * padded + k];
    return value * (q < m ? value : direction(fit, k));
  });
  for (int j = thread(); j < m; j += kThreads) {
    fit.size[j] = sqrt(fit.team.totals[j]);
    fit.along_f[j] = fit.team.totals[m + j];
  }
  __syncthreads();
  return same;
}

/// W <- unit(base + scale (S + ridge I)^-1 F), and the operand of the next gradient <- W_j - W_c.
template <typename T, typename Base>
__device__ __noinline__ void step(Fit& fit, double scale, int same_as_last, Base base) {
  const int m = fit.m, padded = fit.rows.padded;
  const T* y = static_cast<const T*>(fit.y);
  for (int k = fit.first_column + thread(); k < fit.last_column; k += kThreads) {
    double rest = 0.0;
    for (int j = 0; j < m; ++j) {
      const double solved = fit.size[j] * double(y[j * padded + k]) + fit.along_f[j] / fit.ridge * direction(fit, k);
      rest -= solved;
      fit.raw[j * padded + k] = base(j, k) + scale * solved;
    }
    fit.raw[m * padded + k] = same_as_last < 0 ? base(m, k) + scale * rest : fit.raw[same_as_last * padded + k];
  }
  team_sums(fit.team, fit.c, fit.first_column, fit.last_column, [&](int j, int k) {
    return fit.raw[j * padded + k] * fit.raw[j * padded + k];
  });
  for (int j = thread(); j < fit.c; j += kThreads) fit.sums[j] = sqrt(fit.team.totals[j]);
  __syncthreads();
  for (int j = 0; j < fit.c; ++j)
    for (int k = fit.first_column + thread(); k < fit.last_column; k += kThreads)
      fit.W[j * padded + k] = fit.raw[j * padded + k] / fit.sums[j];
  double* V = static_cast<double*>(fit.operand);
  for (int j = 0; j < m; ++j)
    for (int k = thread(); k < padded; k += kThreads)
      V[j * padded + k] = load_fresh(fit.raw + j * padded + k) / fit.sums[j] -
                          load_fresh(fit.raw + m * padded + k) / fit.sums[m];
}

/// partial <- Xᵀ(softmax_j(X W / tau_i) - 1/c) for all but the last class; a shift of all logits changes no softmax.
__device__ __noinline__ void gradient_pass(Fit& fit) {
  const int m = fit.m, stride = fit.rows.tile_rows;
  double* values = static_cast<double*>(fit.rows.values);
  each_tile(fit.rows, [&](const float* tile, int start, int count) {
    dots(fit.rows, tile, count, static_cast<const double*>(fit.operand), m, values);
    __syncthreads();
    for (int i = thread(); i < count; i += kThreads) {
      double peak = 0.0, total = 0.0;
      for (int j = 0; j < m; ++j) peak = larger(peak, values[j * stride + i]);
      for (int j = 0; j < m; ++j) {
        const double power = exp((values[j * stride + i] - peak) / fit.tau_i);
        values[j * stride + i] = power;
        total += power;
      }
      const double inverse = 1.0 / (total + exp(-peak / fit.tau_i));
      for (int j = 0; j < m; ++j) values[j * stride + i] = values[j * stride + i] * inverse - 1.0 / fit.c;
    }
    __syncthreads();
    accumulate(fit.rows, tile, count, values, m, own_partial<double>(fit), start > 0);
  });
}

/// F <- G from the partial sums; false where the gradient of a class vanished. totals[j] = ‖G_j‖².
__device__ __noinline__ bool collect_gradient(Fit& fit) {
  const int c = fit.c, m = fit.m, padded = fit.rows.padded;
  meet(fit.team);
  each_sum<double>(fit, m, [&](int j, int k, double sum) { fit.F[j * padded + k] = sum; });
  __syncthreads();
  for (int k = fit.first_column + thread(); k < fit.last_column; k += kThreads) {
    const double shared = fit.n / c * fit.mean[k];
    double rest = 0.0;
    for (int j = 0; j < m; ++j) {
      const double own = fit.F[j * padded + k];
      rest -= own;
      fit.F[j * padded + k] = shared + own - fit.XtP[j * padded + k];
    }
    fit.F[m * padded + k] = shared + rest - fit.XtP[m * padded + k];
  }
  __syncthreads();
  team_sums(fit.team, c, fit.first_column, fit.last_column, [&](int j, int k) {
    return fit.F[j * padded + k] * fit.F[j * padded + k];
  });
  bool good = true;
  for (int j = 0; j < c; ++j) good = good && fit.team.totals[j] > 0.0;
  return good;
}

/// F <- gap less `common`, the mean over classes; returns the largest entry relative to the class differences.
__device__ __noinline__ double assess(Fit& fit) {
  const int c = fit.c, m = fit.m, padded = fit.rows.padded;
  double error = 0.0, differences = 0.0;
  for (int k = fit.first_column + thread(); k < fit.last_column; k += kThreads) {
    double shared = 0.0, average = 0.0;
    for (int j = 0; j < c; ++j) {
      const double gap = -fit.F[j * padded + k] / sqrt(fit.team.totals[j]) - fit.W[j * padded + k];
      fit.F[j * padded + k] = gap;
      shared += gap;
      average += fit.W[j * padded + k];
    }
    shared /= c;
    average /= c;
    for (int j = 0; j < c; ++j) {
      fit.F[j * padded + k] -= shared;
      error = larger(error, fabs(fit.F[j * padded + k]));
      differences = larger(differences, fabs(fit.W[j * padded + k] - average));
    }
    fit.common[k] = shared;
  }
  block_sums(fit.team, 2 * m, fit.first_column, fit.last_column, own_board(fit.team), [&](int q, int k) {
    const double value = fit.F[q % m * padded + k];
    return value * (q < m ? value : direction(fit, k));
  });
  block_maxima(fit.team, error, differences, own_board(fit.team) + 2 * m);
  collect(fit.team, 2 * m, 2);
  for (int j = thread(); j < m; j += kThreads) {
    fit.size[j] = sqrt(fit.team.totals[j]);
    fit.along_f[j] = fit.team.totals[m + j];
  }
  const double most = fit.team.totals[2 * m], spread = fit.team.totals[2 * m + 1];
  __syncthreads();
  // Differences below 1e-14 are rounding of unit columns: the classes are the same direction.
  return spread > 1e-14 ? most / spread : 0.0;
}

/// First order and corrections, with the slope in T to a relative `tolerance`.
template <typename T>
__device__ __noinline__ Outcome attempt(Fit& fit, double tolerance, int most) {
  const int padded = fit.rows.padded;
  double residual = infinite();
  const int same = first_residual(fit);
  if (!conjugate_gradients<T>(fit, tolerance, most)) return {kNotPositive, 0, residual};
  const double shared = fit.c / (fit.n * fit.mu), own = fit.c * fit.tau_i / fit.n;
  step<T>(fit, own, same, [&](int, int k) { return shared * fit.common[k] - direction(fit, k); });
  for (int corrections = 0;; ++corrections) {
    gradient_pass(fit);
    if (!collect_gradient(fit)) return {kVanished, corrections, residual};
    const double now = assess(fit);
    if (now <= kTolerance) return {kReached, corrections, now};
    if (!(now <= 0.5 * residual)) return {kStalled, corrections, now};  // NaN as well
    if (corrections == kMaxCorrections) return {kUnfinished, corrections, now};
    residual = now;
    if (!conjugate_gradients<T>(fit, tolerance, most)) return {kNotPositive, corrections, residual};
    step<T>(fit, fit.ridge, same, [&](int j, int k) { return fit.W[j * padded + k] + fit.common[k]; });
  }
}

__device__ __noinline__ Outcome fixed_point(Fit& fit) {
  const int small = static_cast<int>(fmin(fit.n, static_cast<double>(fit.rows.d)));
  const double tolerance = fmin(fmax(0.01 / fit.n, 1e-7), 1e-3);
  const Outcome found = attempt<float>(fit, tolerance, small + 64);
  if (found.fault == kReached) return found;
  return attempt<double>(fit, 1e-13, 4 * small + 64);
}

/// Everything from X and P to W and the record.
__device__ void solve(const Problem& problem, Fit& fit, const Schedule& schedule) {
  Record& record = *problem.record;
  Sums sums = {0.0, 0.0, 0.0};
  Outcome found = {record.num_hardened > 0 ? kHardened : fit.rows.tile_rows < 1 ? kTooManyClasses : kReached, 0, 0.0};
  if (found.fault == kReached) {
    load_resident(fit.rows);
    sums = sum_features(fit);
    found = refuse(fit, sums, schedule);
  }
  if (found.fault == kReached) {
    sum_labels(fit);
    found = fixed_point(fit);
    for (int j = 0; j < fit.c; ++j)
      for (int k = fit.first_column + thread(); k < min(fit.last_column, fit.rows.d); k += kThreads)
        problem.W[j * problem.d + k] = fit.W[j * fit.rows.padded + k];
  }
  if (fit.team.rank != 0 || thread() != 0) return;
  record.form = kClosedForm;
  record.fault = found.fault;
  record.iterations = found.corrections;
  record.residual = found.figure;
  record.converged = found.fault == kReached;
  record.mass = sums.mass;
  record.lr = schedule.lr;
}

}  // namespace
}  // namespace kpl::conjugate

/// Grid: teams of `team` blocks, each a cluster, or all resident at once (cooperative), or of one block. `counters`:
/// one a problem, kCounters apart, zero. `shared_bytes`: dynamic shared memory of a block.
extern "C" __global__ void __launch_bounds__(256, 1)
    closed_form(const kpl::Problem* problems, int num_problems, int team, int shared_bytes, unsigned* counters,
                double tau_i, double lr, long long iters, int must_reach_schedule) {
  const int block = static_cast<int>(blockIdx.x), teams = static_cast<int>(gridDim.x) / team;
  const kpl::conjugate::Schedule schedule = {lr, iters, must_reach_schedule != 0};
  kpl::conjugate::Fit& fit = *reinterpret_cast<kpl::conjugate::Fit*>(kpl::dynamic_shared());
  for (int index = block / team; index < num_problems; index += teams) {
    if (threadIdx.x == 0)
      kpl::conjugate::lay_out(fit, problems[index], team, block % team,
                              counters + static_cast<long long>(index) * kpl::kCounters, tau_i, shared_bytes);
    __syncthreads();
    kpl::conjugate::solve(problems[index], fit, schedule);
    __syncthreads();
  }
}
KPL_EXPORT_KERNEL(closed_form);
