// Who works on one problem together: the threads of a block, of a cluster of blocks or of several blocks of a
// cooperative grid. The steps of a schedule are written once, over what a team can do:
//
//   barrier()      all threads of the team; global memory written before is visible after (to load_fresh)
//   push_rows()    a warp hands the rows of R it has written to the other blocks
//   share()        barrier after which every block has all rows of R
//   gather()       the sums of all warps, or of all blocks, where every thread of the team can read them
//
// All sums are added in an order that depends on the sizes alone, so a run repeats to the bit.
#pragma once

#include "device/platform.cuh"

namespace kpl {

static __device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x % KPL_WARP); }
static __device__ __forceinline__ int warp_index() { return static_cast<int>(threadIdx.x / KPL_WARP); }
static __device__ __forceinline__ int num_warps() { return static_cast<int>(blockDim.x / KPL_WARP); }

/// Sums of N values over L neighbouring lanes at once: at each stage a lane keeps half of the values and gives the other
/// half away, so N sums need about N + log2(L) exchanges and not N log2(L). The sum of value `sum_position` is in v[0].
template <int N, int L>
static __device__ __forceinline__ void transposed_sums(double (&v)[N], int lane) {
  if constexpr (L > 1) {
    if constexpr (N == 1) {
      v[0] += __shfl_xor_sync(KPL_FULL_MASK, v[0], L / 2);
      transposed_sums<1, L / 2>(v, lane);
    } else {
      constexpr int kHalf = (N + 1) / 2;
      const bool upper = (lane & (L / 2)) != 0;
      double kept[kHalf];
#pragma unroll
      for (int i = 0; i < kHalf; ++i) {
        const double low = v[i], high = i + kHalf < N ? v[i + kHalf < N ? i + kHalf : 0] : 0.0;
        kept[i] = (upper ? high : low) + __shfl_xor_sync(KPL_FULL_MASK, upper ? low : high, L / 2);
      }
      transposed_sums<kHalf, L / 2>(kept, lane);
      v[0] = kept[0];
    }
  } else {
    static_assert(N == 1, "more values than lanes");
  }
}

/// Which of the N values this lane holds the sum of; -1 where another lane owns it.
template <int N, int L>
static __device__ __forceinline__ int sum_position(int lane) {
  if constexpr (L == 1) {
    return 0;
  } else {
    constexpr int kHalf = (N + 1) / 2;
    const bool upper = (lane & (L / 2)) != 0;
    const int inner = sum_position<(N == 1 ? 1 : kHalf), L / 2>(lane);
    if (N == 1) return upper ? -1 : inner;
    if (!upper || inner < 0) return inner;
    return inner + kHalf < N ? inner + kHalf : -1;
  }
}

static __device__ __forceinline__ double warp_sum(double value) {
  for (int lanes = KPL_WARP / 2; lanes > 0; lanes /= 2) value += __shfl_xor_sync(KPL_FULL_MASK, value, lanes);
  return value;
}

static __device__ __forceinline__ double warp_maximum(double value) {
  for (int lanes = KPL_WARP / 2; lanes > 0; lanes /= 2)
    value = fmax(value, __shfl_xor_sync(KPL_FULL_MASK, value, lanes));
  return value;
}

/// Past the L1 cache where another block may have written it.
template <typename T>
static __device__ __forceinline__ T read(const T* from, bool fresh) {
  return fresh ? load_fresh(from) : *from;
}

/// R (c, ldr): every block has all n rows of it; each block makes its own.
struct Residual {
  double* at;
  int ldr;
  bool fresh;  // in global memory that other blocks write: only a grid whose shared memory is too small for it
};

/// `count` sets of sums, each of the same size; their sum in this order is the team's.
struct Slots {
  const double* at;
  int count;
};

struct BlockTeam {
  static constexpr bool kManyBlocks = false;  // W is written by other blocks
  static constexpr bool kFreshSlots = false;  // and so are the sums, in global memory
  int rank = 0, count = 1;

  __device__ __forceinline__ void barrier() const { __syncthreads(); }
  __device__ __forceinline__ void push_rows(const Residual&, int, int, int) const {}
  __device__ __forceinline__ void share(const Residual&, int, int) const { __syncthreads(); }
  __device__ __forceinline__ Slots gather(const double* part, int size) const {
    (void)size;
    __syncthreads();
    return {part, num_warps()};
  }
};

/// The sum over the warps of this block of number v.
static __device__ __forceinline__ double block_sum(const double* part, int size, int v) {
  double total = 0.0;
  for (int warp = 0; warp < num_warps(); ++warp) total += part[warp * size + v];
  return total;
}

/// Blocks write into each other's shared memory; `slots` (count, size) and R lie at the same place in all of them.
struct ClusterTeam {
  static constexpr bool kManyBlocks = true;
  static constexpr bool kFreshSlots = false;
  int rank, count;
  double* slots;

  __device__ __forceinline__ void barrier() const { cluster_barrier(); }
  __device__ __forceinline__ void push_rows(const Residual& R, int c, int first, int rows) const {
    for (int at = lane_index(); at < rows * (count - 1); at += KPL_WARP) {
      const int peer = at / rows, i = first + at - peer * rows, target = (rank + 1 + peer) % count;
      double* theirs = remote_shared(R.at, static_cast<unsigned>(target));
      for (int j = 0; j < c; ++j) theirs[j * R.ldr + i] = R.at[j * R.ldr + i];
    }
  }
  __device__ __forceinline__ void share(const Residual&, int, int) const { cluster_barrier(); }
  __device__ __forceinline__ Slots gather(const double* part, int size) const {
    __syncthreads();
    for (int at = static_cast<int>(threadIdx.x); at < size * count; at += static_cast<int>(blockDim.x)) {
      const int target = at / size, v = at - target * size;
      remote_shared(slots, static_cast<unsigned>(target))[rank * size + v] = block_sum(part, size, v);
    }
    cluster_barrier();
    return {slots, count};
  }
};

/// Blocks meet at a counter and exchange through global memory: `slots` (count, size), `rows` (c, ldr).
struct GridTeam {
  static constexpr bool kManyBlocks = true;
  static constexpr bool kFreshSlots = true;
  int rank, count;
  unsigned* counter;
  double *slots, *rows;

  __device__ __forceinline__ void barrier() const { grid_barrier(counter, static_cast<unsigned>(count)); }
  __device__ __forceinline__ void push_rows(const Residual& R, int c, int first, int num_rows) const {
    if (R.at == rows) return;
    for (int j = 0; j < c; ++j)
      for (int i = first + lane_index(); i < first + num_rows; i += KPL_WARP) rows[j * R.ldr + i] = R.at[j * R.ldr + i];
  }
  __device__ __forceinline__ void share(const Residual& R, int n, int c) const {
    barrier();
    if (R.at == rows) return;
    for (int j = 0; j < c; ++j)
      for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x))
        R.at[j * R.ldr + i] = load_fresh(rows + j * R.ldr + i);
    __syncthreads();
  }
  __device__ __forceinline__ Slots gather(const double* part, int size) const {
    __syncthreads();
    for (int v = static_cast<int>(threadIdx.x); v < size; v += static_cast<int>(blockDim.x))
      slots[rank * size + v] = block_sum(part, size, v);
    barrier();
    return {slots, count};
  }
};

}  // namespace kpl
