// Products of the primal form with many columns: tiles in shared memory, float64 fragments of one warp multiplied by
// mma.sync.m8n8k4 where there is one.
//
// A block of 256 threads makes a tile of 128 by 64 results, each of its 8 warps 32 by 32 (4 by 4 fragments, 64
// registers of sums). The depth goes by 16; two chunks are being copied (cp.async) while one is multiplied. Strides in
// shared memory are such that no two lanes of a fragment load meet in a bank.
#pragma once

#include "device/platform.cuh"

namespace kpl {
namespace {

constexpr int kThreads = 256, kTileM = 128, kTileN = 64, kDepth = 16, kStages = 3;
constexpr int kFragments = 4;  // of a warp each way

/// Copies ROWS x COLUMNS of a row-major array into shared memory; what lies outside is zero. 16 bytes at a time where
/// rows are aligned. Reads past L1: the array may come from another block.
template <int ROWS, int COLUMNS, int STRIDE, typename T>
__device__ __forceinline__ void fetch_block(T* to, const T* from, long long ld, long long rows, long long columns) {
    constexpr int V = 16 / sizeof(T);
    static_assert(COLUMNS % V == 0 && STRIDE % V == 0, "whole vectors");
    const bool is_aligned = ld % V == 0 && reinterpret_cast<unsigned long long>(from) % 16 == 0;
#pragma unroll 1
    for (int i = threadIdx.x; i < ROWS * COLUMNS / V; i += kThreads) {
        const int r = i / (COLUMNS / V), k = i % (COLUMNS / V) * V;
        T* slot = to + r * STRIDE + k;
        if (is_aligned && r < rows && k + V <= columns)
            copy_async_16(slot, from + r * ld + k);
        else
#pragma unroll 1
            for (int e = 0; e < V; ++e)
                slot[e] = r < rows && k + e < columns ? load_fresh(from + r * ld + k + e) : T(0);
    }
}

/// d += a b, fragments of m8n8k4 as in mma_f64.
__device__ __forceinline__ void multiply_fragments(double (&d)[2], double a, double b) {
#if KPL_HAS_MMA
    mma_f64(d, a, b);
#else
    const int group = threadIdx.x % KPL_WARP / 4, pair = threadIdx.x % 4;
    for (int t = 0; t < 4; ++t) {
        const double left = __shfl_sync(KPL_FULL_MASK, a, group * 4 + t);
        for (int i = 0; i < 2; ++i)
            d[i] = fma(left, __shfl_sync(KPL_FULL_MASK, b, (2 * pair + i) * 4 + t), d[i]);
    }
#endif
}

/// Z tile: rows of X (n, d) against columns W_j, rows of W (c, d); the depth is d.
struct LogitTiles {
    static constexpr int kStride = kDepth + 4;
    struct Stage {
        alignas(16) float X[kTileM * kStride];
        alignas(16) double W[kTileN * kStride];
    };
    const float* X;  // first row of the tile
    const double* W;
    long long d, rows, columns;  // left in the arrays

    __device__ __forceinline__ void fetch(Stage& stage, long long at) const {
        fetch_block<kTileM, kDepth, kStride>(stage.X, X + at, d, rows, d - at);
        fetch_block<kTileN, kDepth, kStride>(stage.W, W + at, d, columns, d - at);
    }
    static __device__ __forceinline__ double left(const Stage& stage, int m, int k) { return stage.X[m * kStride + k]; }
    static __device__ __forceinline__ double right(const Stage& stage, int k, int n) {
        return stage.W[n * kStride + k];
    }
};

/// G tile: classes of R (n, c) against coordinates of X (n, d); the depth is the rows.
struct GradientTiles {
    static constexpr int kLeft = kTileM + 4, kRight = kTileN + 8;
    struct Stage {
        alignas(16) double R[kDepth * kLeft];
        alignas(16) float X[kDepth * kRight];
    };
    const double* R;  // first row and class of the tile
    const float* X;
    long long c, d, rows, classes, columns;  // strides; left in the arrays

    __device__ __forceinline__ void fetch(Stage& stage, long long at) const {
        fetch_block<kDepth, kTileM, kLeft>(stage.R, R + at * c, c, rows - at, classes);
        fetch_block<kDepth, kTileN, kRight>(stage.X, X + at * d, d, rows - at, columns);
    }
    static __device__ __forceinline__ double left(const Stage& stage, int m, int k) { return stage.R[k * kLeft + m]; }
    static __device__ __forceinline__ double right(const Stage& stage, int k, int n) {
        return stage.X[k * kRight + n];
    }
};

/// The tile's product in registers, then `write(m, n, value)` for every entry of it.
template <typename Tiles, typename Write>
__device__ __forceinline__ void multiply_tile(const Tiles& tiles, long long depth, void* shared, Write write) {
    auto* stages = static_cast<typename Tiles::Stage*>(shared);
    const int lane = threadIdx.x % KPL_WARP, warp = threadIdx.x / KPL_WARP;
    const int m = warp / 2 * 8 * kFragments, n = warp % 2 * 8 * kFragments, group = lane / 4, pair = lane % 4;
    double sums[kFragments][kFragments][2] = {};
    const int chunks = static_cast<int>((depth + kDepth - 1) / kDepth);
    const auto fetch = [&](int chunk) {
        if (chunk < chunks) tiles.fetch(stages[chunk % kStages], static_cast<long long>(chunk) * kDepth);
        copy_async_commit();
    };
    for (int chunk = 0; chunk + 1 < kStages; ++chunk) fetch(chunk);
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk) {
        copy_async_wait<kStages - 2>();
        __syncthreads();  // the chunk is there for all, and all are done with the one before, whose place is next
        fetch(chunk + kStages - 1);
        const auto& stage = stages[chunk % kStages];
#pragma unroll
        for (int k = 0; k < kDepth; k += 4) {
            double a[kFragments], b[kFragments];
#pragma unroll
            for (int i = 0; i < kFragments; ++i) a[i] = Tiles::left(stage, m + 8 * i + group, k + pair);
#pragma unroll
            for (int j = 0; j < kFragments; ++j) b[j] = Tiles::right(stage, k + pair, n + 8 * j + group);
#pragma unroll
            for (int i = 0; i < kFragments; ++i)
#pragma unroll
                for (int j = 0; j < kFragments; ++j) multiply_fragments(sums[i][j], a[i], b[j]);
        }
    }
    copy_async_wait<0>();
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kFragments; ++i)
#pragma unroll
        for (int j = 0; j < kFragments; ++j)
#pragma unroll
            for (int e = 0; e < 2; ++e) write(m + 8 * i + group, n + 8 * j + 2 * pair + e, sums[i][j][e]);
}

}  // namespace
}  // namespace kpl
