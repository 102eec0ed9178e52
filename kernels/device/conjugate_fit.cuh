// Where a team keeps what it knows of a problem: the problem's workspace, and the shared memory of each block.
#pragma once

#include "device/conjugate.cuh"
#include "device/problem.cuh"

namespace kpl::conjugate {

/// Hands out parts of a memory, each aligned to 16 bytes.
struct Parts {
  unsigned char* next;

  template <typename T>
  __device__ T* take(long long count) {
    T* part = reinterpret_cast<T*>(next);
    next += (count * static_cast<long long>(sizeof(T)) + 15) / 16 * 16;
    return part;
  }
};

/// Vectors and boards of the team in the workspace, as `workspace_doubles` of kpl_engine/cuda/ops/closed_form.py counts.
static __device__ __forceinline__ void lay_out_workspace(Fit& fit, double* workspace, long long n) {
  const long long padded = fit.rows.padded, c = fit.c, team = fit.team.size;
  Parts parts = {reinterpret_cast<unsigned char*>(workspace)};
  fit.mean = parts.take<double>(padded);
  fit.common = parts.take<double>(padded);
  fit.XtP = parts.take<double>(c * padded);
  fit.raw = parts.take<double>(c * padded);
  fit.F = parts.take<double>(c * padded);
  fit.W = parts.take<double>(c * padded);
  fit.y = parts.take<double>(c * padded);
  fit.r = parts.take<double>(c * padded);
  fit.along = parts.take<double>(n);
  fit.team.width = static_cast<int>(2 * c + 4);
  fit.team.board = parts.take<double>(2 * team * fit.team.width);
  fit.partial = parts.take<double>(team * c * padded);
  fit.operand = parts.take<double>(team * c * padded) + fit.team.rank * c * padded;
}

/// Which rows, `share` of them or fewer, and which columns this block of the team has.
static __device__ __forceinline__ void deal_out(Fit& fit, const Problem& problem, long long share) {
  const long long first = min(share * fit.team.rank, problem.n);
  fit.rows.X = problem.X + first * problem.d;
  fit.P = problem.P + first * problem.c;
  fit.rows.count = static_cast<int>(min(share, problem.n - first));
  fit.along += first;
  const int fours = fit.rows.padded / 4, wide = (fours + fit.team.size - 1) / fit.team.size;
  fit.first_column = 4 * min(wide * fit.team.rank, fours);
  fit.last_column = 4 * min(wide * (fit.team.rank + 1), fours);
}

/// Behind the Fit itself: scalars, the operand where it leaves room for a few rows, and as many rows of X as fit, the
/// same number in all blocks of the team.
static __device__ __forceinline__ void lay_out_shared(Fit& fit, long long share, int shared_bytes) {
  const long long c = fit.c, padded = fit.rows.padded;
  Parts parts = {dynamic_shared() + (sizeof(Fit) + 15) / 16 * 16};
  const unsigned char* end = dynamic_shared() + shared_bytes;
  fit.team.scratch = parts.take<double>(kWarps * (2 * c + 4));
  fit.team.totals = parts.take<double>(2 * c + 4);
  fit.sums = parts.take<double>(2 * c + 4);
  double** scalars[] = {&fit.rr, &fit.pp, &fit.alpha, &fit.beta, &fit.size, &fit.along_f, &fit.active};
  for (double** scalar : scalars) *scalar = parts.take<double>(c);
  const long long operand = 8 * padded * (c > 1 ? c - 1 : 1), row = 4 * padded, values = 8 * (c + 1);
  if (operand + min(share, 16ll) * (row + values) <= end - parts.next - 64)
    fit.operand = parts.take<double>(operand / 8);
  const long long room = end - parts.next - 64;
  fit.rows.resident = share * (row + values) <= room;
  const long long fitting = fit.rows.resident ? share : room > 0 ? room / (2 * row + values) : 0;
  fit.rows.tile_rows = static_cast<int>(fitting);
  fit.rows.tiles[0] = parts.take<float>(fitting * padded);
  fit.rows.tiles[1] = parts.take<float>(fit.rows.resident ? 0 : fitting * padded);
  fit.rows.values = parts.take<double>(fitting * (c + 1));
}

/// Everything but mu and ridge, by one thread. Without room for one row tile_rows is 0.
static __device__ __noinline__ void lay_out(Fit& fit, const Problem& problem, int team, int rank, unsigned* counter,
                                               double tau_i, int shared_bytes) {
  fit = {};
  fit.team.size = team;
  fit.team.rank = rank;
  fit.team.is_cluster = team > 1 && cluster_size() == static_cast<unsigned>(team);
  fit.team.counter = counter;
  fit.c = static_cast<int>(problem.c);
  fit.m = fit.c - 1;
  fit.n = static_cast<double>(problem.n);
  fit.tau_i = tau_i;
  fit.rows.d = static_cast<int>(problem.d);
  fit.rows.padded = (fit.rows.d + 3) / 4 * 4;
  lay_out_workspace(fit, problem.workspace, problem.n);
  const long long share = (problem.n + team - 1) / team;
  deal_out(fit, problem, share);
  lay_out_shared(fit, share, shared_bytes);
}

}  // namespace kpl::conjugate
