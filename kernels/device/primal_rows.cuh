// Rows of X for the primal form with few columns: tiles of rows that stay in shared memory, tiles that stream through
// two slots, and sums over the block.
//
// Thread t of a block owns the coordinates 4t .. 4t+3 of every row, copies them itself and reads only what it copied:
// the copies (cp.async, 16 bytes each) need no barrier, and two tiles are always under way while one is worked on.
#pragma once

#include "device/platform.cuh"

namespace kpl {
namespace {

constexpr int kSlots = 2;  // tiles under way
constexpr int kOwn = 4;    // coordinates of a thread

/// The rows of one block. Tiles below `resident` stay in shared memory, the others stream: forwards in one pass, back
/// in the next, so that what was read last is read first, while it is still in L2.
struct RowTiles {
    const float* X;
    float* slots;       // kSlots streaming tiles, then the resident ones; a row is 4 blockDim.x floats
    long long n, row;   // rows of the problem, first row of the block
    int d, rows;        // of a tile
    int tiles, resident, streamed;
    int ahead, behind;  // next streamed tile to fetch and to take, counted within its pass
    bool fetches_back, takes_back;
    int slot;  // of the next streamed tile
};

__device__ __forceinline__ float* slot_of(const RowTiles& at, int slot) {
    return at.slots + static_cast<long long>(slot) * at.rows * kOwn * blockDim.x;
}

/// Starts the copy of this thread's coordinates of one tile; rows and coordinates that do not exist are zero.
__device__ __forceinline__ void fetch_tile(const RowTiles& at, int tile, float* slot) {
    const int first = kOwn * static_cast<int>(threadIdx.x);
    const bool is_vector = at.d % kOwn == 0;
    float* to = slot + first;
#pragma unroll 1
    for (int r = 0; r < at.rows; ++r, to += kOwn * blockDim.x) {
        const long long row = at.row + static_cast<long long>(tile) * at.rows + r;
        const float* from = at.X + row * at.d + first;
        if (row < at.n && is_vector && first < at.d)
            copy_async_16(to, from);
        else
            for (int k = 0; k < kOwn; ++k) to[k] = row < at.n && first + k < at.d ? __ldg(from + k) : 0.0f;
    }
}

/// Fetches the next streamed tile, into the slot that was taken last. One group of copies each.
__device__ __forceinline__ void fetch_next(RowTiles& at, int slot) {
    if (at.streamed == 0) return;
    const int place = at.fetches_back ? at.streamed - 1 - at.ahead : at.ahead;
    fetch_tile(at, at.resident + place, slot_of(at, slot));
    copy_async_commit();
    if (++at.ahead == at.streamed) {
        at.ahead = 0;
        at.fetches_back = !at.fetches_back;
    }
}

/// Which tile the next streamed one is, and where it lies; its copies have arrived.
__device__ __forceinline__ const float* take_streamed(RowTiles& at, int& tile) {
    tile = at.resident + (at.takes_back ? at.streamed - 1 - at.behind : at.behind);
    if (++at.behind == at.streamed) {
        at.behind = 0;
        at.takes_back = !at.takes_back;
    }
    copy_async_wait<kSlots - 1>();
    at.slot ^= 1;
    return slot_of(at, at.slot ^ 1);
}

/// The tiles of this block among all blocks of the grid; the resident ones are there on return.
__device__ __forceinline__ RowTiles open_rows(const float* X, long long n, int d, int rows, int max_resident,
                                              float* slots) {
    const long long all = (n + rows - 1) / rows, blocks = gridDim.x, block = blockIdx.x;
    const long long first = all * block / blocks;
    const int tiles = static_cast<int>(all * (block + 1) / blocks - first);
    const int resident = tiles < max_resident ? tiles : max_resident;
    RowTiles at = {X, slots, n, first * rows, d, rows, tiles, resident, tiles - resident, 0, 0, false, false, 0};
    for (int tile = 0; tile < resident; ++tile) fetch_tile(at, tile, slot_of(at, kSlots + tile));
    copy_async_commit();
    copy_async_wait<0>();
    for (int slot = 0; slot < kSlots; ++slot) fetch_next(at, slot);
    return at;
}

/// Sums of ROWS values a lane over the warp: lane l ends with the sum of z[l % ROWS]. ROWS + 4 - log2 ROWS shuffles.
template <int ROWS>
__device__ __forceinline__ double reduce_rows(double (&z)[ROWS]) {
    const int lane = threadIdx.x % KPL_WARP;
#pragma unroll
    for (int half = ROWS / 2; half > 0; half /= 2)
#pragma unroll
        for (int r = 0; r < half; ++r) {
            const bool upper = (lane & half) != 0;
            const double sent = upper ? z[r] : z[r + half], kept = upper ? z[r + half] : z[r];
            z[r] = kept + __shfl_xor_sync(KPL_FULL_MASK, sent, half);
        }
#pragma unroll
    for (int mask = ROWS; mask < KPL_WARP; mask *= 2) z[0] += __shfl_xor_sync(KPL_FULL_MASK, z[0], mask);
    return z[0];
}

__device__ __forceinline__ double warp_sum(double value) {
#pragma unroll
    for (int mask = 1; mask < KPL_WARP; mask *= 2) value += __shfl_xor_sync(KPL_FULL_MASK, value, mask);
    return value;
}

/// Leaves the warps' sums at `sums` (a number for each warp); `block_total` after a barrier adds them up in their
/// order, which gives every thread of every block the same bits.
__device__ __forceinline__ void leave_sum(double value, double* sums) {
    value = warp_sum(value);
    if (threadIdx.x % KPL_WARP == 0) sums[threadIdx.x / KPL_WARP] = value;
}

__device__ __forceinline__ double block_total(const double* sums) {
    double total = 0.0;
#pragma unroll 2
    for (unsigned warp = 0; warp < blockDim.x / KPL_WARP; ++warp) total += sums[warp];
    return total;
}

}  // namespace
}  // namespace kpl
