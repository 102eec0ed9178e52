// Conjugate gradients of a team of blocks on (S + ridge I) y = f with S = Pi XᵀX Pi / n, for m right-hand sides at once,
// each with scalars of its own; the matrix is never formed (docs/method.md 3c).
//
//   z = X p,  q = (Xᵀz - (Σ_i z_i (x_i·u)) u) / n + ridge p,  alpha = r·r / (‖z‖²/n + ridge ‖p‖²)
//   y += alpha p,  r -= alpha q,  p = r + (r·r / before) p
//
// f is orthogonal to u, and so are all r and p; the projection of Xᵀz keeps them so. Rows of X are dealt out over the
// blocks, columns k of y and r too; every block has all of p. An iteration is one pass over X (4 n d m flops, 4 n d bytes
// of shared memory twice), two meetings, and 3 m d numbers through L2 a block.
//
// With T = float vectors and products are float32, sums over them float64: enough for corrections, which need only the
// slope. The condition number is at most 1 + mean‖x‖²/ridge; after j iterations the residual is below
// 2 ((sqrt(κ) - 1)/(sqrt(κ) + 1))^j of f.
#pragma once

#include "device/conjugate_rows.cuh"

namespace kpl::conjugate {

/// What the team knows of its problem. In global memory vectors of classes are `padded` apart; a block writes only its
/// columns first_column .. last_column - 1 of them.
struct Fit {
  Team team;
  Rows rows;
  int c, m;  // classes; all but the last, whose vector makes the sum over classes zero
  int first_column, last_column;
  double n, tau_i, mu, ridge;
  double *mean, *XtP, *raw, *F, *common;  // (padded) or (c, padded); columns from d on are zero
  double* W;                              // (c, padded) unit columns, of which each block knows its own
  const double* P;                        // (., c) labels of the block's own rows
  double* along;                          // x_i · u of the block's own rows
  void *y, *r;                            // (m, padded) of T
  void* partial;                          // [team][c][padded] of T: what blocks add to sums over rows
  void* operand;                          // (m, padded) of T, the block's own copy: p, or the vectors of a pass
  double* sums;                           // shared, 2 c: sums of a pass
  double *rr, *pp, *alpha, *beta, *size, *along_f;  // shared, m each: scalars of the right-hand sides
  double* active;                                   // shared, m: 1 while the right-hand side is worked on
};

static __device__ __forceinline__ double infinite() { return __longlong_as_double(0x7ff0000000000000ll); }

static __device__ __forceinline__ double direction(const Fit& fit, int k) { return fit.mean[k] / fit.mu; }

/// Where this block puts its part of sums over rows.
template <typename T>
static __device__ __forceinline__ T* own_partial(const Fit& fit) {
  return static_cast<T*>(fit.partial) + static_cast<long long>(fit.team.rank) * fit.c * fit.rows.padded;
}

/// body(j, k, sum) with the sum over blocks of their partial vectors j < m at column k, for the block's columns. Several
/// lanes share an entry where the team is large; one of them calls.
template <typename T, typename Body>
static __device__ __forceinline__ void each_sum(const Fit& fit, int num_vectors, Body body) {
  const int width = fit.last_column - fit.first_column, padded = fit.rows.padded;
  const int sharing = fit.team.size >= 8 ? 8 : 1, sub = thread() % sharing;
  const long long stride = static_cast<long long>(fit.c) * padded;
  const int count = width > 0 ? width * num_vectors : 0;
  for (int base = 0; base < count; base += kThreads / sharing) {
    const int entry = base + thread() / sharing;
    const int j = entry / (width > 0 ? width : 1), k = fit.first_column + entry - j * width;
    double sum = 0.0;
    if (entry < count) {
      const T* from = static_cast<const T*>(fit.partial) + static_cast<long long>(j) * padded + k;
#pragma unroll 4
      for (int block = sub; block < fit.team.size; block += sharing) sum += load_fresh(from + block * stride);
    }
    for (int lanes = sharing / 2; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(KPL_FULL_MASK, sum, lanes);
    if (entry < count && sub == 0) body(j, k, sum);
  }
}

/// The block's part of z = X p and Xᵀz, for all m; and on the board ‖z‖² and Σ_i z_i (x_i·u).
template <typename T>
static __device__ __noinline__ void product_pass(Fit& fit) {
  const int m = fit.m;
  for (int q = thread(); q < 2 * m; q += kThreads) fit.sums[q] = 0.0;
  each_tile(fit.rows, [&](const float* tile, int start, int count) {
    T* values = static_cast<T*>(fit.rows.values);
    dots(fit.rows, tile, count, static_cast<const T*>(fit.operand), m, values);
    __syncthreads();
    for (int j = warp(); j < m; j += kWarps) {
      double square = 0.0, along = 0.0;
      for (int i = lane(); i < count; i += KPL_WARP) {
        const double z = values[j * fit.rows.tile_rows + i];
        square += z * z;
        along += z * fit.along[start + i];
      }
      square = warp_sum(square);
      along = warp_sum(along);
      if (lane() == 0) {
        fit.sums[j] += square;
        fit.sums[m + j] += along;
      }
    }
    accumulate(fit.rows, tile, count, values, m, own_partial<T>(fit), start > 0);
  });
  for (int q = thread(); q < 2 * m; q += kThreads) own_board(fit.team)[q] = fit.sums[q];
}

/// r = f / ‖f‖ without its part along u, y = 0, p = r. `size` ‖f_j‖ and `along_f` u·f_j are given, f is F.
template <typename T>
static __device__ __noinline__ void start(Fit& fit, double tolerance) {
  const int padded = fit.rows.padded, m = fit.m;
  T *y = static_cast<T*>(fit.y), *r = static_cast<T*>(fit.r), *p = static_cast<T*>(fit.operand);
  for (int j = 0; j < m; ++j) {
    const double inverse = fit.size[j] > 0.0 ? 1.0 / fit.size[j] : 0.0;
    for (int k = fit.first_column + thread(); k < fit.last_column; k += kThreads) {
      r[j * padded + k] = static_cast<T>((fit.F[j * padded + k] - fit.along_f[j] * direction(fit, k)) * inverse);
      y[j * padded + k] = T(0);
    }
  }
  meet(fit.team);
  block_sums(fit.team, m, 0, padded, fit.rr, [&](int j, int k) {
    const T value = load_fresh(r + j * padded + k);
    p[j * padded + k] = value;
    return static_cast<double>(value) * static_cast<double>(value);
  });
  for (int j = thread(); j < m; j += kThreads) {
    fit.pp[j] = fit.rr[j];
    fit.active[j] = fit.rr[j] > tolerance * tolerance ? 1.0 : 0.0;
  }
  __syncthreads();
}

/// alpha from the totals of a pass. A product that is not positive ends that right-hand side with its residual.
static __device__ __forceinline__ void step_lengths(Fit& fit) {
  for (int j = thread(); j < fit.m; j += kThreads) {
    const double pq = fit.team.totals[j] / fit.n + fit.ridge * fit.pp[j];
    fit.alpha[j] = fit.active[j] != 0.0 && pq > 0.0 ? fit.rr[j] / pq : 0.0;
  }
  __syncthreads();
}

/// p = r + beta p, and which right-hand sides are done. r·p = 0 gives ‖p‖² = ‖r‖² + beta² ‖p before‖².
template <typename T>
static __device__ __noinline__ void next_direction(Fit& fit, double tolerance) {
  const int padded = fit.rows.padded, m = fit.m;
  const T* r = static_cast<const T*>(fit.r);
  T* p = static_cast<T*>(fit.operand);
  block_sums(fit.team, m, 0, padded, fit.beta, [&](int j, int k) {
    const double value = load_fresh(r + j * padded + k);
    return value * value;
  });
  for (int j = thread(); j < m; j += kThreads) {
    const double rr = fit.beta[j], beta = fit.alpha[j] != 0.0 ? rr / fit.rr[j] : 0.0;
    fit.beta[j] = beta;
    fit.rr[j] = rr;
    fit.pp[j] = rr + beta * beta * fit.pp[j];
    fit.active[j] = fit.alpha[j] != 0.0 && rr > tolerance * tolerance ? 1.0 : 0.0;
  }
  __syncthreads();
  for (int j = 0; j < m; ++j) {
    if (fit.active[j] == 0.0) continue;
    const T beta = static_cast<T>(fit.beta[j]);
    for (int k = thread(); k < padded; k += kThreads)
      p[j * padded + k] = load_fresh(r + j * padded + k) + beta * p[j * padded + k];
  }
}

static __device__ __forceinline__ bool any_active(const Fit& fit) {
  bool any = false;
  for (int j = 0; j < fit.m; ++j) any = any || fit.active[j] != 0.0;
  return any;
}

static __device__ __forceinline__ bool all_within(const Fit& fit, double tolerance) {
  bool within = true;
  for (int j = 0; j < fit.m; ++j) within = within && fit.rr[j] <= tolerance * tolerance;
  return within;
}

/// y_j = (S + ridge I)^-1 (F_j - (u·F_j) u) / ‖F_j‖, until the residual of each is at most `tolerance`. False where
/// `most` iterations were not enough.
template <typename T>
static __device__ __noinline__ bool conjugate_gradients(Fit& fit, double tolerance, int most) {
  const int padded = fit.rows.padded;
  T *y = static_cast<T*>(fit.y), *r = static_cast<T*>(fit.r);
  const T* p = static_cast<const T*>(fit.operand);
  start<T>(fit, tolerance);
  for (int done = 0; done < most && any_active(fit); ++done) {
    product_pass<T>(fit);
    collect(fit.team, 2 * fit.m, 0);
    step_lengths(fit);
    each_sum<T>(fit, fit.m, [&](int j, int k, double sum) {
      const double alpha = fit.alpha[j], along = fit.team.totals[fit.m + j];
      const double value = p[j * padded + k];
      const double q = (sum - along * direction(fit, k)) / fit.n + fit.ridge * value;
      y[j * padded + k] = static_cast<T>(y[j * padded + k] + alpha * value);
      r[j * padded + k] = static_cast<T>(r[j * padded + k] - alpha * q);
    });
    meet(fit.team);
    next_direction<T>(fit, tolerance);
    __syncthreads();
  }
  return all_within(fit, tolerance);
}

}  // namespace kpl::conjugate
