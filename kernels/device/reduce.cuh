// Sums, maxima and the furthest of a block, always in the same order: the same input gives the same bits.
//
// Within a warp values meet in a butterfly, whose result is the same in every lane. The warps' results are then met by
// every warp alike, so a reduction costs one barrier and nothing has to be sent back.
#pragma once

#include "device/platform.cuh"

namespace kpl {

static __device__ __forceinline__ double minus_infinity() { return -__longlong_as_double(0x7ff0000000000000LL); }

// Over the `width` lanes (a power of two) around this one; all 32 lanes take part.
static __device__ __forceinline__ double sum_lanes(double value, int width = KPL_WARP) {
    for (int step = width / 2; step > 0; step /= 2) value += __shfl_xor_sync(KPL_FULL_MASK, value, step);
    return value;
}

// The larger of two, the second where the first is NaN.
static __device__ __forceinline__ double larger(double a, double b) { return a > b ? a : b; }

static __device__ __forceinline__ double max_lanes(double value, int width = KPL_WARP) {
    for (int step = width / 2; step > 0; step /= 2) value = larger(__shfl_xor_sync(KPL_FULL_MASK, value, step), value);
    return value;
}

// A number and where it is; `before` orders by size, the first index first among equals.
struct Place {
    double size;
    long long index;
};

static __device__ __forceinline__ bool before(const Place& a, const Place& b) {
    return a.size > b.size || (a.size == b.size && a.index < b.index);
}

static __device__ __forceinline__ Place first_lanes(Place mine, int width = KPL_WARP) {
    for (int step = width / 2; step > 0; step /= 2) {
        const Place other = {__shfl_xor_sync(KPL_FULL_MASK, mine.size, step),
                             __shfl_xor_sync(KPL_FULL_MASK, mine.index, step)};
        if (before(other, mine)) mine = other;
    }
    return mine;
}

// Reductions of a block of whole warps, at most 32. Two sets of slots take turns: a set is written again only after
// the barrier of the reduction between, which every thread reaches after it has read the set.
class BlockReduce {
public:
    static constexpr int kBytes = 2 * KPL_WARP * int(sizeof(Place));

    __device__ explicit BlockReduce(unsigned char* shared) : slots_(reinterpret_cast<Place*>(shared)), turn_(0) {}

    // Of all threads, for all threads; also a barrier.
    __device__ double sum(double value) {
        return sum_lanes(exchange({sum_lanes(value), 0}, {0.0, 0}).size);
    }

    __device__ double max(double value) {
        return max_lanes(exchange({max_lanes(value), 0}, {minus_infinity(), 0}).size);
    }

    // The largest of the places, the lowest index among equals.
    __device__ Place first(Place mine) {
        return first_lanes(exchange(first_lanes(mine), {minus_infinity(), 0x7fffffffffffffffLL}));
    }

private:
    // Each warp's value to one lane of every warp, `none` to the lanes that are left over.
    __device__ Place exchange(Place of_warp, Place none) {
        Place* slots = slots_ + turn_ * KPL_WARP;
        turn_ ^= 1;
        const int lane = int(threadIdx.x) % KPL_WARP, warps = int(blockDim.x) / KPL_WARP;
        if (lane == 0) slots[threadIdx.x / KPL_WARP] = of_warp;
        __syncthreads();
        return lane < warps ? slots[lane] : none;
    }

    Place* slots_;
    int turn_;
};

}  // namespace kpl
