// Products of two float16 halves each on tensor cores: (h + l)(h' + l') less l l', where h + l is a number times a
// power of two to 22 bits. As exact as float32, at three products (mma.sync.m16n8k16) each.
//
// Both arrays are row-major along the depth and padded to whole chunks of it with zeros. A block of 256 threads makes a
// tile of 128 by 128 results, each of its 8 warps 64 by 32. Tensor cores cut off what they add; so only three
// products are added there, a depth of 16, and all further sums are float32 additions that round to nearest.
#pragma once

#include "device/platform.cuh"
#include "device/wide_product.cuh"

namespace kpl {
namespace {

using Half = unsigned short;  // bits of a float16

constexpr int kSplitTile = 128, kSplitDepth = 32, kSplitStages = 3;
constexpr int kSplitStride = kSplitDepth + 8;  // 20 words: no two lanes of a fragment load meet in a bank
constexpr int kSplitPlane = kSplitTile * kSplitStride;
constexpr int kSplitM = 4, kSplitN = 4;  // fragments of a warp each way

/// Two planes of halves, (rows, ld): high parts, and low parts `plane` further on.
struct SplitArray {
    Half* high;
    long long plane, ld;
};

struct SplitStage {
    alignas(16) Half left[2][kSplitPlane];
    alignas(16) Half right[2][kSplitPlane];
};

/// `rows` are left in the array from `from` on; the depth starts at `at`.
__device__ __forceinline__ void fetch_halves(Half (&to)[2][kSplitPlane], const SplitArray& array, long long row,
                                             long long rows, long long at) {
    for (int part = 0; part < 2; ++part)
        fetch_block<kSplitTile, kSplitDepth, kSplitStride>(
            to[part], array.high + part * array.plane + row * array.ld + at, array.ld, rows, array.ld - at);
}

/// A fragment of the left side, 16 rows by 16, or of the right side, 8 columns by 16: pairs along the depth.
__device__ __forceinline__ void load_left(unsigned (&a)[4], const Half* plane, int m, int k) {
    const int group = threadIdx.x % KPL_WARP / 4, pair = threadIdx.x % 4;
    const Half* from = plane + (m + group) * kSplitStride + k + 2 * pair;
    a[0] = *reinterpret_cast<const unsigned*>(from);
    a[1] = *reinterpret_cast<const unsigned*>(from + 8 * kSplitStride);
    a[2] = *reinterpret_cast<const unsigned*>(from + 8);
    a[3] = *reinterpret_cast<const unsigned*>(from + 8 * kSplitStride + 8);
}

__device__ __forceinline__ void load_right(unsigned (&b)[2], const Half* plane, int n, int k) {
    const int group = threadIdx.x % KPL_WARP / 4, pair = threadIdx.x % 4;
    const Half* from = plane + (n + group) * kSplitStride + k + 2 * pair;
    b[0] = *reinterpret_cast<const unsigned*>(from);
    b[1] = *reinterpret_cast<const unsigned*>(from + 8);
}

/// One chunk of the depth into the sums.
__device__ __forceinline__ void multiply_chunk(const SplitStage& stage, int m, int n,
                                               float (&sums)[kSplitM][kSplitN][4]) {
#pragma unroll 1
    for (int k = 0; k < kSplitDepth; k += 16) {
        unsigned b[kSplitN][2][2];
#pragma unroll
        for (int j = 0; j < kSplitN; ++j)
#pragma unroll
            for (int part = 0; part < 2; ++part) load_right(b[j][part], stage.right[part], n + 8 * j, k);
#pragma unroll
        for (int i = 0; i < kSplitM; ++i) {
            float chunk[kSplitN][4] = {};
            unsigned high[4], low[4];
            load_left(high, stage.left[0], m + 16 * i, k);
            load_left(low, stage.left[1], m + 16 * i, k);
#pragma unroll
            for (int j = 0; j < kSplitN; ++j) mma_f16(chunk[j], low, b[j][0]);
#pragma unroll
            for (int j = 0; j < kSplitN; ++j) mma_f16(chunk[j], high, b[j][1]);
#pragma unroll
            for (int j = 0; j < kSplitN; ++j) mma_f16(chunk[j], high, b[j][0]);
#pragma unroll
            for (int j = 0; j < kSplitN; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) sums[i][j][e] += chunk[j][e];
        }
    }
}

/// The tile of left rows from `row` and right rows from `column`, over the depth [first, last) in whole chunks; then
/// `write(m, n, value)` for every entry.
template <typename Write>
__device__ __forceinline__ void multiply_split_tile(const SplitArray& left, long long row, long long rows,
                                                    const SplitArray& right, long long column, long long columns,
                                                    long long first, long long last, void* shared, Write write) {
    auto* stages = static_cast<SplitStage*>(shared);
    const int lane = threadIdx.x % KPL_WARP, warp = threadIdx.x / KPL_WARP;
    const int m = warp / 4 * 16 * kSplitM, n = warp % 4 * 8 * kSplitN;
    const int chunks = static_cast<int>((last - first) / kSplitDepth);
    float sums[kSplitM][kSplitN][4] = {};
    const auto fetch = [&](int chunk) {
        if (chunk < chunks) {
            SplitStage& stage = stages[chunk % kSplitStages];
            fetch_halves(stage.left, left, row, rows, first + chunk * kSplitDepth);
            fetch_halves(stage.right, right, column, columns, first + chunk * kSplitDepth);
        }
        copy_async_commit();
    };
    for (int chunk = 0; chunk + 1 < kSplitStages; ++chunk) fetch(chunk);
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk) {
        copy_async_wait<kSplitStages - 2>();
        __syncthreads();  // the chunk is there for all, and all are done with the one before, whose place is next
        fetch(chunk + kSplitStages - 1);
        multiply_chunk(stages[chunk % kSplitStages], m, n, sums);
    }
    copy_async_wait<0>();
    __syncthreads();
    // Through shared memory: whole lines go out, and 64 addresses in registers are spared.
    constexpr int kStride = kSplitTile + 4;
    static_assert(sizeof(float) * kSplitTile * kStride <= kSplitStages * sizeof(SplitStage), "it takes their place");
    float* tile = static_cast<float*>(shared);
#pragma unroll
    for (int i = 0; i < kSplitM; ++i)
#pragma unroll
        for (int j = 0; j < kSplitN; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e)
                tile[(m + 16 * i + lane / 4 + 8 * (e / 2)) * kStride + n + 8 * j + 2 * (lane % 4) + e % 2] =
                    sums[i][j][e];
    __syncthreads();
    const int across = static_cast<int>(threadIdx.x) % kSplitTile;
#pragma unroll 4
    for (int down = threadIdx.x / kSplitTile; down < kSplitTile; down += kThreads / kSplitTile)
        write(down, across, tile[down * kStride + across]);
    __syncthreads();
}

}  // namespace
}  // namespace kpl
