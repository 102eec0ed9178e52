// The sums of a step over all of a team, class by class. Every thread of the team gets the same bits.
//
// Few classes: every warp adds up all slots by itself, a lane for each class and part of the slots, and keeps columns of
// its own, so no thread waits for another block-wide. Many: a thread for each class, columns shared by the block.
#pragma once

#include "device/dual_task.cuh"

namespace kpl {

struct Pair {
  double x, y;
};

template <bool kFresh>
struct ClassSums {
  Slots slots;
  Pair mine;  // few classes: of the class of this lane; number c is the pair behind the last

  __device__ __forceinline__ Pair of_slot(const DualTask& task, int slot, int j) const {
    const double2* at = reinterpret_cast<const double2*>(slots.at + slot * task.slot) + j;
    const double2 pair = read(at, kFresh);
    return {pair.x, pair.y};
  }

  __device__ __forceinline__ Pair of_class(const DualTask& task, int j) const {
    Pair total = {0.0, 0.0};
    for (int slot = 0; slot < slots.count; ++slot) {
      const Pair pair = of_slot(task, slot, j);
      total.x += pair.x;
      total.y += pair.y;
    }
    return total;
  }

  /// Few classes, all slots: a lane for each of 2^kBits pairs and part of the slots.
  template <int kBits>
  __device__ __forceinline__ void add_up(const DualTask& task) {
    const int lane = lane_index(), j = lane & ((1 << kBits) - 1);
    if (j <= task.c)
      for (int slot = lane >> kBits; slot < slots.count; slot += KPL_WARP >> kBits) {
        const Pair pair = of_slot(task, slot, j);
        mine.x += pair.x;
        mine.y += pair.y;
      }
#pragma unroll
    for (int lanes = 1 << kBits; lanes < KPL_WARP; lanes *= 2) {
      mine.x += __shfl_xor_sync(KPL_FULL_MASK, mine.x, lanes);
      mine.y += __shfl_xor_sync(KPL_FULL_MASK, mine.y, lanes);
    }
  }

  __device__ __forceinline__ ClassSums(const DualTask& task, const Slots& all) : slots(all), mine({0.0, 0.0}) {
    if (task.c < 4)
      add_up<2>(task);
    else if (task.few())
      add_up<4>(task);
  }

  /// Σ_j of the first number of each class.
  __device__ __forceinline__ double total(const DualTask& task) const {
    double sum = 0.0;
    if (task.c < 4) {
#pragma unroll
      for (int j = 0; j < 3; ++j) {
        const double x = __shfl_sync(KPL_FULL_MASK, mine.x, j);
        sum += j < task.c ? x : 0.0;
      }
      return sum;
    }
    if (task.few()) {
      for (int j = 0; j < task.c; ++j) sum += __shfl_sync(KPL_FULL_MASK, mine.x, j);
      return sum;
    }
    for (int j = lane_index(); j < task.c; j += KPL_WARP) sum += of_class(task, j).x;
    return warp_sum(sum);
  }

  /// The pair behind the last class.
  __device__ __forceinline__ Pair last(const DualTask& task) const {
    if (!task.few()) return of_class(task, task.c);
    return {__shfl_sync(KPL_FULL_MASK, mine.x, task.c), __shfl_sync(KPL_FULL_MASK, mine.y, task.c)};
  }

  /// `update(column, pair)` for every class by one thread of each copy of the columns, which all may read after it.
  template <typename Update>
  __device__ __forceinline__ void for_classes(const DualTask& task, Update update) const {
    if (task.few()) {
      const int lane = lane_index();
      if (lane < task.c) update(task.columns[lane], mine);
      __syncwarp();
    } else {
      __syncthreads();  // others may still read the columns as they are
      for (int j = static_cast<int>(threadIdx.x); j < task.c; j += static_cast<int>(blockDim.x))
        update(task.columns[j], of_class(task, j));
      __syncthreads();
    }
  }
};

/// Whether any class of this thread's copy satisfies `test(column)`; every thread of the team has the same answer.
template <typename Test>
static __device__ __forceinline__ bool any_class(const DualTask& task, Test test) {
  bool found = false;
  for (int j = lane_index(); j < task.c; j += KPL_WARP) found |= test(task.columns[j]);
  return __any_sync(KPL_FULL_MASK, found) != 0;
}

}  // namespace kpl
