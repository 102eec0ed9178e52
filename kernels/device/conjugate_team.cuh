// A team of blocks that solves one problem: its meetings, and sums over the whole team that every block gets with the
// same bits, because each adds the same numbers in the same order.
//
// A team is one block, a cluster, or blocks of a cooperative grid; a meeting costs about 0.05, 0.3 or 1.5 us on an H200.
#pragma once

#include "device/platform.cuh"

namespace kpl::conjugate {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / KPL_WARP;

static __device__ __forceinline__ int thread() { return static_cast<int>(threadIdx.x); }
static __device__ __forceinline__ int lane() { return thread() % KPL_WARP; }
static __device__ __forceinline__ int warp() { return thread() / KPL_WARP; }

template <typename T>
static __device__ __forceinline__ T warp_sum(T value) {
  for (int lanes = KPL_WARP / 2; lanes > 0; lanes /= 2) value += __shfl_xor_sync(KPL_FULL_MASK, value, lanes);
  return value;
}

/// The larger of two; NaN wins, where fmax would drop it.
static __device__ __forceinline__ double larger(double a, double b) { return a > b || a != a ? a : b; }

static __device__ __forceinline__ double warp_max(double value) {
  for (int lanes = KPL_WARP / 2; lanes > 0; lanes /= 2)
    value = larger(value, __shfl_xor_sync(KPL_FULL_MASK, value, lanes));
  return value;
}

/// In shared memory, one a block.
struct Team {
  int size, rank;
  bool is_cluster;
  unsigned* counter;  // of its grid barrier; zero before the launch
  double* board;      // global, [2][size][width]: what the blocks tell each other
  int width;
  int turn;           // which half of the board is written next: readers of the other half may still be at work
  double* scratch;    // shared, kWarps doubles for each number of a sum
  double* totals;     // shared, width doubles
};

/// All blocks of the team; what they wrote to global memory before is visible after (load_fresh).
static __device__ __noinline__ void meet(const Team& team) {
  if (team.size == 1)
    __syncthreads();
  else if (team.is_cluster)
    cluster_barrier();
  else
    grid_barrier(team.counter, static_cast<unsigned>(team.size));
}

/// This block's part of the half of the board that is written now.
static __device__ __forceinline__ double* own_board(const Team& team) {
  return team.board + (static_cast<long long>(team.turn) * team.size + team.rank) * team.width;
}

/// to[q] <- the sum over k = first, first + 1 .. last - 1 of value(q, k), for q < count. Ends with the block in step.
template <typename Value>
static __device__ __forceinline__ void block_sums(const Team& team, int count, int first, int last, double* to,
                                                  Value value) {
  for (int q = 0; q < count; ++q) {
    double sum = 0.0;
    for (int k = first + thread(); k < last; k += kThreads) sum += value(q, k);
    sum = warp_sum(sum);
    if (lane() == 0) team.scratch[q * kWarps + warp()] = sum;
  }
  __syncthreads();
  for (int q = thread(); q < count; q += kThreads) {
    double sum = 0.0;
    for (int w = 0; w < kWarps; ++w) sum += team.scratch[q * kWarps + w];
    to[q] = sum;
  }
  __syncthreads();
}

/// to[0], to[1] <- the largest over the block of two numbers of each thread, at least 0. Ends with the block in step.
static __device__ __noinline__ void block_maxima(const Team& team, double a, double b, double* to) {
  a = warp_max(a);
  b = warp_max(b);
  if (lane() == 0) {
    team.scratch[warp()] = a;
    team.scratch[kWarps + warp()] = b;
  }
  __syncthreads();
  if (thread() < 2) {
    double most = 0.0;
    for (int w = 0; w < kWarps; ++w) most = larger(most, team.scratch[thread() * kWarps + w]);
    to[thread()] = most;
  }
  __syncthreads();
}

/// Meets, then totals[q] <- the sum over blocks of what each put on the board at q; from `num_sums` on the maximum.
static __device__ __noinline__ void collect(Team& team, int num_sums, int num_maxima) {
  meet(team);
  const double* board = team.board + static_cast<long long>(team.turn) * team.size * team.width;
  for (int q = warp(); q < num_sums + num_maxima; q += kWarps) {
    double found = 0.0;
    for (int block = lane(); block < team.size; block += KPL_WARP) {
      const double theirs = load_fresh(board + static_cast<long long>(block) * team.width + q);
      found = q < num_sums ? found + theirs : larger(found, theirs);
    }
    found = q < num_sums ? warp_sum(found) : warp_max(found);
    if (lane() == 0) team.totals[q] = found;
  }
  __syncthreads();
  if (thread() == 0) team.turn ^= 1;
  __syncthreads();
}

/// totals[q] <- the sum over all columns k of value(q, k); each block adds up its columns, first .. last - 1.
template <typename Value>
static __device__ __forceinline__ void team_sums(Team& team, int count, int first, int last, Value value) {
  block_sums(team, count, first, last, own_board(team), value);
  collect(team, count, 0);
}

}  // namespace kpl::conjugate
