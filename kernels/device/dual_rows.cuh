// What a step of the dual form does row by row, one lane a row: the sums it needs, and the move.
//
//   sums   Σ_i R∘H and Σ_i Z∘R of each class, Σ |R∘H|
//   move   Z <- (Z - eta H) / s,  A <- (A - eta R) / s,  R = softmax(Z / tau_i) - P
//
// The columns of H add up to `rest` = K (1 - Σ_j P_j), so the last is that less the others. A lane reads and writes only
// its own rows here, so nothing waits. Two classes, the commonest case, have code of their own: one exponential and no
// loops, for this is the part of a step in which every operation waits for the one before.
#pragma once

#include "device/dual_task.cuh"

namespace kpl {

/// `visit(i)` for the rows of this lane: at most one with K in registers, where a loop would only cost.
template <bool kOneRow, typename Visit>
static __device__ __forceinline__ void for_rows(const DualTask& task, Visit visit) {
  const int first = task.begin + lane_index();
  if constexpr (kOneRow) {
    if (first < task.end) visit(first);
  } else {
#pragma unroll 1
    for (int i = first; i < task.end; i += KPL_WARP) visit(i);
  }
}

/// Writes the last column of H.
template <bool kOneRow>
static __device__ __forceinline__ void finish_product(const DualTask& task) {
  for_rows<kOneRow>(task, [&](int i) {
    double h = task.rest[i];
    for (int j = 0; j + 1 < task.c; ++j) h -= task.H[j * task.ld + i];
    task.H[(task.c - 1) * task.ld + i] = h;
  });
}

template <bool kOneRow>
static __device__ __forceinline__ void sum_rows_two(const DualTask& task, bool changed) {
  double v[6] = {};
  for_rows<kOneRow>(task, [&](int i) {
    const double h0 = task.H[i], h1 = task.rest[i] - h0;
    const double r0 = task.R.at[task.first + i], r1 = task.R.at[task.R.ldr + task.first + i];
    task.H[task.ld + i] = h1;
    v[0] = fma(r0, h0, v[0]);
    v[1] = fma(task.Z[i], r0, v[1]);
    v[2] = fma(r1, h1, v[2]);
    v[3] = fma(task.Z[task.ld + i], r1, v[3]);
    v[4] += fabs(r0 * h0) + fabs(r1 * h1);
  });
  v[5] = changed ? 1.0 : 0.0;
  const int lane = lane_index(), position = sum_position<6, KPL_WARP>(lane);
  transposed_sums<6, KPL_WARP>(v, lane);
  if (position >= 0) task.part[warp_index() * task.slot + position] = v[0];
}

template <bool kOneRow>
static __device__ __forceinline__ void sum_rows_any(const DualTask& task, bool changed) {
  finish_product<kOneRow>(task);
  const int lane = lane_index(), position = sum_position<2 * kPairs, KPL_WARP>(lane);
  double terms = 0.0;
  for (int first = 0; first <= task.c; first += kPairs) {
    double v[2 * kPairs] = {};
    for_rows<kOneRow>(task, [&](int i) {
#pragma unroll
      for (int q = 0; q < kPairs; ++q) {
        const int j = first + q;
        if (j >= task.c) continue;
        const double h = task.H[j * task.ld + i], r = task.R.at[j * task.R.ldr + task.first + i];
        v[2 * q] = fma(r, h, v[2 * q]);
        v[2 * q + 1] = fma(task.Z[j * task.ld + i], r, v[2 * q + 1]);
        terms += fabs(r * h);
      }
    });
#pragma unroll
    for (int q = 0; q < kPairs; ++q)
      if (first + q == task.c) {
        v[2 * q] = terms;
        v[2 * q + 1] = changed ? 1.0 : 0.0;
      }
    transposed_sums<2 * kPairs, KPL_WARP>(v, lane);
    if (position >= 0) task.part[warp_index() * task.slot + 2 * first + position] = v[0];
  }
}

/// The sums of this warp's rows into its slot; `changed`: whether this lane's part of the last step changed a bit.
template <bool kOneRow>
static __device__ __forceinline__ void sum_rows(const DualTask& task, bool changed) {
  if (task.c == 2)
    sum_rows_two<kOneRow>(task, changed);
  else
    sum_rows_any<kOneRow>(task, changed);
}

/// R of a row of two classes. The larger exponent is taken as 0, so no power overflows.
static __device__ __forceinline__ void residual_two(const DualTask& task, int i, double z0, double z1) {
  const double difference = (z0 - z1) * task.scale, power = exp(-fabs(difference));
  const double large = __drcp_rn(1.0 + power), small = power * large;
  const bool first = difference >= 0.0;
  task.R.at[task.first + i] = (first ? large : small) - task.P[i];
  task.R.at[task.R.ldr + task.first + i] = (first ? small : large) - task.P[task.ld + i];
}

static __device__ __forceinline__ void residual_any(const DualTask& task, int i) {
  double peak = -infinity(), total = 0.0;
  for (int j = 0; j < task.c; ++j) peak = fmax(peak, task.Z[j * task.ld + i]);
  double* R = task.R.at + task.first + i;
  for (int j = 0; j < task.c; ++j) {
    const double power = exp((task.Z[j * task.ld + i] - peak) * task.scale);
    R[j * task.R.ldr] = power;
    total += power;
  }
  const double inverse = __drcp_rn(total);
  for (int j = 0; j < task.c; ++j) R[j * task.R.ldr] = R[j * task.R.ldr] * inverse - task.P[j * task.ld + i];
}

/// R = softmax(Z / tau_i) - P of this warp's rows.
static __device__ __forceinline__ void make_residual(const DualTask& task) {
  for_rows<false>(task, [&](int i) {
    if (task.c == 2)
      residual_two(task, i, task.Z[i], task.Z[task.ld + i]);
    else
      residual_any(task, i);
  });
}

/// One entry of Z and A; whether a bit of them changed.
static __device__ __forceinline__ bool move_entry(const DualTask& task, const Column& column, int j, int i, double& z) {
  const int at = j * task.ld + i;
  const double old_z = task.Z[at], old_a = task.A[at];
  z = (old_z - column.eta * task.H[at]) * column.inverse;
  const double a = (old_a - column.eta * task.R.at[j * task.R.ldr + task.first + i]) * column.inverse;
  task.Z[at] = z;
  task.A[at] = a;
  return z != old_z || a != old_a;
}

/// The move of this warp's rows, and their new R. Whether any bit of this lane's changed.
template <bool kOneRow>
static __device__ __forceinline__ bool move_rows(const DualTask& task) {
  bool changed = false;
  for_rows<kOneRow>(task, [&](int i) {
    double z0, z1;
    if (task.c == 2) {
      changed |= move_entry(task, task.columns[0], 0, i, z0);
      changed |= move_entry(task, task.columns[1], 1, i, z1);
      residual_two(task, i, z0, z1);
    } else {
      for (int j = 0; j < task.c; ++j) changed |= move_entry(task, task.columns[j], j, i, z0);
      residual_any(task, i);
    }
  });
  return changed;
}

}  // namespace kpl
