// Where a run of the dual form starts, starts afresh and ends: between X and W on one side, K, Z and A on the other.
//
//   Z = X W,   W = T diag(t) + Xᵀ A,   ‖G_j‖² = ‖Xᵀ R_j‖² where Σ R∘H has too few digits left
//
// Rare against the steps (once, and at most every few hundred steps), so written for brevity; features are read as
// float32 where they lie, n d 4 bytes for each four classes.
#pragma once

#include "device/dual_rows.cuh"
#include "device/dual_sums.cuh"
#include "device/gram.cuh"

namespace kpl {

/// Xᵀ R for all features of this warp, kPairs classes at a time: `take(j, k, value)`, then `finish(first class)`.
template <typename Team, typename Take, typename Finish>
static __device__ __forceinline__ void project_back(const DualTask& task, const Team& team, Take take, Finish finish) {
  const int warp = team.rank * num_warps() + warp_index(), warps = team.count * num_warps(), d = task.d();
  const float* X = task.problem->X;
  for (int first = 0; first < task.c; first += kPairs) {
    for (int k = warp * KPL_WARP + lane_index(); k < d; k += warps * KPL_WARP) {
      double total[kPairs] = {};
      for (int i = 0; i < task.n; ++i) {
        const double x = static_cast<double>(X[static_cast<long long>(i) * d + k]);
#pragma unroll
        for (int q = 0; q < kPairs; ++q)
          if (first + q < task.c)
            total[q] = fma(x, read(task.R.at + (first + q) * task.R.ldr + i, task.R.fresh), total[q]);
      }
#pragma unroll
      for (int q = 0; q < kPairs; ++q)
        if (first + q < task.c) take(q, first + q, k, total[q]);
    }
    finish(first);
  }
}

/// The warp's sums of the squares that were taken, as the first numbers of its pairs; the second ones stay.
static __device__ __forceinline__ void put_squares(const DualTask& task, int first, double (&squares)[kPairs]) {
  const int lane = lane_index(), position = sum_position<kPairs, KPL_WARP>(lane);
  double v[kPairs];
#pragma unroll
  for (int q = 0; q < kPairs; ++q) v[q] = squares[q], squares[q] = 0.0;
  transposed_sums<kPairs, KPL_WARP>(v, lane);
  // The pair behind the last class is not a square.
  if (position >= 0 && first + position < task.c) task.part[warp_index() * task.slot + 2 * (first + position)] = v[0];
}

/// ‖G_j‖² in place of Σ_i R∘H. All have read the sums of before when a team gathers again.
template <typename Team>
static __device__ __forceinline__ Slots squared_gradients(const DualTask& task, const Team& team) {
  team.barrier();
  double squares[kPairs] = {};
  project_back(
      task, team, [&](int q, int, int, double g) { squares[q] = fma(g, g, squares[q]); },
      [&](int first) { put_squares(task, first, squares); });
  return team.gather(task.part, task.slot);
}

/// `row(i)` is what R is to hold in rows of this warp; then all blocks have it. All have read the R of before.
template <typename Team, typename Row>
static __device__ __forceinline__ void exchange(const DualTask& task, const Team& team, int c, Row row) {
  for (int i = task.begin + lane_index(); i < task.end; i += KPL_WARP)
    for (int j = 0; j < c; ++j) task.R.at[j * task.R.ldr + task.first + i] = row(j, i);
  __syncwarp();
  team.push_rows(task.R, c, task.first + task.begin, task.end - task.begin);
  team.share(task.R, task.n, c);
}

/// W <- W diag(t) + Xᵀ A, columns scaled to ‖w_j‖² = squared_j. R holds A meanwhile and has to be made again.
template <typename Team>
static __device__ __forceinline__ void combine(const DualTask& task, const Team& team) {
  team.barrier();  // others may still copy the R of the last step
  exchange(task, team, task.c, [&](int j, int i) { return task.A[j * task.ld + i]; });
  double squares[kPairs] = {};
  double* W = task.problem->W;
  const int d = task.d();
  project_back(
      task, team,
      [&](int q, int j, int k, double value) {
        double* w = W + static_cast<long long>(j) * d + k;
        *w = fma(*w, task.columns[j].t, value);
        squares[q] = fma(*w, *w, squares[q]);
      },
      [&](int first) { put_squares(task, first, squares); });
  const ClassSums<Team::kFreshSlots> sums(task, team.gather(task.part, task.slot));
  sums.for_classes(task, [&](Column& column, const Pair& pair) {
    column.eta = sqrt(column.squared / (pair.x > 0.0 ? pair.x : 1.0));  // not used again before the next step sets it
  });
  const int warp = team.rank * num_warps() + warp_index(), warps = team.count * num_warps();
  for (int j = 0; j < task.c; ++j)
    for (int k = warp * KPL_WARP + lane_index(); k < d; k += warps * KPL_WARP)
      W[static_cast<long long>(j) * d + k] *= task.columns[j].eta;
  team.barrier();
}

/// Z = X W and A = 0 for this warp's rows, then R; the columns start at W. All blocks have written W.
template <typename Team>
static __device__ __forceinline__ void begin_at_w(const DualTask& task, const Team& team) {
  const float* X = task.problem->X;
  const double* W = task.problem->W;
  const int d = task.d();
  const auto row = [&](int i) { return X + static_cast<long long>(task.first + i) * d; };
  const auto take = [&](int i, int j, double value) { task.Z[j * task.ld + i] = value; };
  int first = task.begin;
  for (; first + 4 <= task.end; first += 4)
    multiply_some<4>(first, row, W, d, d, task.c, Team::kManyBlocks, take);
  for (; first < task.end; ++first)
    multiply_some<1>(first, row, W, d, d, task.c, Team::kManyBlocks, take);
  for (int i = task.begin + lane_index(); i < task.end; i += KPL_WARP)
    for (int j = 0; j < task.c; ++j) task.A[j * task.ld + i] = 0.0;
  __syncwarp();
  make_residual(task);
  __syncwarp();
  team.push_rows(task.R, task.c, task.first + task.begin, task.end - task.begin);
  team.share(task.R, task.n, task.c);
}

/// A run that was found to have drifted goes on from W itself.
template <typename Team>
static __device__ __forceinline__ void start_afresh(const DualTask& task, const Team& team) {
  combine(task, team);
  // The barriers of combine and begin_at_w keep this apart from those who still read t and those who read it next.
  const bool shared = !task.few();
  for (int j = shared ? static_cast<int>(threadIdx.x) : lane_index(); j < task.c;
       j += shared ? static_cast<int>(blockDim.x) : KPL_WARP) {
    task.columns[j].t = 1.0;
    task.columns[j].drift = task.columns[j].before = 1.0;
  }
  begin_at_w(task, team);
}

/// Labels into P, W = T, and what the rules need of both: Σ P, ‖T_j‖², max ‖x_i‖². Returns the first.
template <typename Team>
static __device__ __forceinline__ double load_problem(const DualTask& task, const Team& team,
                                                      const DualOptions& options) {
  const float* T = task.problem->T;
  double* W = task.problem->W;
  const double *labels = task.problem->P, *K = task.K();
  const int d = task.d();
  const int lane = lane_index(), warp = team.rank * num_warps() + warp_index(), warps = team.count * num_warps();
  const int position = sum_position<2 * kPairs, KPL_WARP>(lane);
  for (int first = 0; first < task.c; first += kPairs) {
    double v[2 * kPairs] = {};
#pragma unroll
    for (int q = 0; q < kPairs; ++q) {
      const int j = first + q;
      if (j >= task.c) continue;
      for (int i = task.begin + lane; i < task.end; i += KPL_WARP) {
        const double p = labels[static_cast<long long>(task.first + i) * task.c + j];
        task.P[j * task.ld + i] = p;
        v[2 * q] += p;
      }
      for (int k = warp * KPL_WARP + lane; k < d; k += warps * KPL_WARP) {
        const double start = static_cast<double>(T[static_cast<long long>(j) * d + k]);
        W[static_cast<long long>(j) * d + k] = start;
        v[2 * q + 1] = fma(start, start, v[2 * q + 1]);
      }
    }
    transposed_sums<2 * kPairs, KPL_WARP>(v, lane);
    if (position >= 0) task.part[warp_index() * task.slot + 2 * first + position] = v[0];
  }
  const ClassSums<Team::kFreshSlots> sums(task, team.gather(task.part, task.slot));
  const double mass = sums.total(task);
  sums.for_classes(task, [](Column& column, const Pair& pair) { column = {0.0, 1.0, 1.0, pair.y, 1.0, 1.0}; });
  const bool has_zero = any_class(task, [](const Column& column) { return !(column.squared > 0.0); });
  double longest = 0.0;
  for (int i = lane; i < task.n; i += KPL_WARP) longest = fmax(longest, K[static_cast<long long>(i) * (task.n + 1)]);
  const double movement = allowed_movement(options.movement, mass, task.n, has_zero);
  longest = warp_maximum(longest);
  if (lane == 0) *task.step = first_step(options.lr, options.tau_i, task.n, task.c, longest, movement);
  __syncwarp();
  return mass;
}

/// rest = K (1 - Σ_j P_j), what the columns of H add up to.
template <typename Team, typename Gram>
static __device__ __forceinline__ void prepare_rest(const DualTask& task, const Team& team, const Gram& gram) {
  exchange(task, team, 1, [&](int, int i) {
    double total = 0.0;
    for (int j = 0; j < task.c; ++j) total += task.P[j * task.ld + i];
    return 1.0 - total;
  });
  gram.multiply(task, 1);
  for (int i = task.begin + lane_index(); i < task.end; i += KPL_WARP) task.rest[i] = task.H[i];
  team.barrier();
}

}  // namespace kpl
