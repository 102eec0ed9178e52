// The wide primal form on tensor cores: Z and Xᵀ R from float16 halves (split_product.cuh), softmax in float32 with its
// sums and the difference to P in float64, everything after the products as in wide.cuh. Only for labels of mass n
// (docs/method.md 3b): with stable_greenkhorn labels the classes differ by less than float32 holds.
#pragma once

#include "device/split_product.cuh"
#include "device/wide.cuh"

namespace kpl {
namespace {

// Powers of two that keep the low halves of unit rows and of residuals above the smallest float16, 6e-8.
constexpr float kRowScale = 64.0f, kResidualScale = 1024.0f;
constexpr int kTransposed = KPL_WARP + 1;  // stride of a 32 x 32 square of floats in shared memory

/// `wide`, and: X (n, d) and Xᵀ (d, n), W (c, d) and Rᵀ (c, n) as halves; Z (n, ld) float32.
struct SplitTeam {
    WideTeam wide;
    SplitArray rows, columns, proxies, residuals;
    float* Z;
    long long ld;
};

__device__ __forceinline__ long long round_up(long long size, long long to) { return ceil_divide(size, to) * to; }

__device__ __forceinline__ SplitArray take_array(Half*& from, long long rows, long long columns) {
    const long long ld = round_up(columns, kSplitDepth), plane = rows * ld;
    const SplitArray array = {from, plane, ld};
    from += 2 * plane;
    return array;
}

/// `value`, already scaled, to its two halves.
__device__ __forceinline__ void store_halves(const SplitArray& array, long long row, long long column, float value) {
    const Half high = to_half(value);
    array.high[row * array.ld + column] = high;
    array.high[array.plane + row * array.ld + column] = to_half(value - from_half(high));
}

/// A square of 32 x 32 numbers, lane l having `value(r)` of row r and column l, written transposed: rows of `to` from
/// `column`, its columns from `row`. `square` belongs to the warp.
template <typename Value>
__device__ __forceinline__ void store_transposed(const SplitArray& to, long long row, long long column,
                                                 long long columns, float* square, Value value) {
    const int lane = threadIdx.x % KPL_WARP;
#pragma unroll 8
    for (int r = 0; r < KPL_WARP; ++r) square[r * kTransposed + lane] = value(r);
    __syncwarp(KPL_FULL_MASK);
#pragma unroll 1
    for (int j = 0; j < KPL_WARP && column + j < columns; ++j)
        store_halves(to, column + j, row + lane, square[lane * kTransposed + j]);
    __syncwarp(KPL_FULL_MASK);
}

__device__ __forceinline__ float* square_of_warp(const SplitTeam& team) {
    return static_cast<float*>(team.wide.tiles) + threadIdx.x / KPL_WARP * KPL_WARP * kTransposed;
}

/// X and Xᵀ as halves; padding is zero.
__device__ __forceinline__ void split_rows(const SplitTeam& team) {
    const long long lane = threadIdx.x % KPL_WARP, n = team.wide.n, d = team.wide.d;
    const long long warp = blockIdx.x * kWarps + threadIdx.x / KPL_WARP;
    const long long warps = static_cast<long long>(gridDim.x) * kWarps;
    const long long across = team.rows.ld / KPL_WARP, down = team.columns.ld / KPL_WARP;
    for (long long item = warp; item < across * down; item += warps) {
        const long long row = item / across * KPL_WARP, k = item % across * KPL_WARP;
        store_transposed(team.columns, row, k, d, square_of_warp(team), [&](int r) {
            const bool is_there = row + r < n && k + lane < d;
            const float value = is_there ? kRowScale * __ldg(team.wide.problem.X + (row + r) * d + k + lane) : 0.0f;
            if (row + r < n) store_halves(team.rows, row + r, k + lane, value);
            return value;
        });
    }
}

/// The classes that this warp moves (`move_classes`) as halves; each lane reads what it wrote itself.
__device__ __forceinline__ void split_proxies(const SplitTeam& team) {
    const long long lane = threadIdx.x % KPL_WARP, c = team.wide.c, d = team.wide.d;
    const long long warp = blockIdx.x * kWarps + threadIdx.x / KPL_WARP;
    const long long warps = static_cast<long long>(gridDim.x) * kWarps;
    for (long long j = warp; j < c; j += warps)
        for (long long k = lane; k < team.proxies.ld; k += KPL_WARP) {
            const double value = k < d ? load_fresh(team.wide.problem.W + j * d + k) : 0.0;
            const double scaled = static_cast<double>(kRowScale) * value;
            const Half high = to_half(static_cast<float>(scaled));
            team.proxies.high[j * team.proxies.ld + k] = high;
            team.proxies.high[team.proxies.plane + j * team.proxies.ld + k] =
                to_half(static_cast<float>(scaled - from_half(high)));
        }
}

/// Z <- X W. Not inlined, as the other product: what the phases around it keep in registers would be spilled.
__device__ __noinline__ void make_split_logits(const SplitTeam& team) {
    const long long n = team.wide.n, c = team.wide.c;
    const long long across = ceil_divide(c, kSplitTile), tiles = across * ceil_divide(n, kSplitTile);
    for (long long tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const long long row = tile / across * kSplitTile, column = tile % across * kSplitTile;
        multiply_split_tile(team.rows, row, n - row, team.proxies, column, c - column, 0, team.rows.ld, team.wide.tiles,
                            [&](int i, int j, float value) {
                                if (row + i < n && column + j < c)
                                    team.Z[(row + i) * team.ld + column + j] = value / (kRowScale * kRowScale);
                            });
    }
}

/// Rᵀ = (softmax(Z / tau_i) - P)ᵀ as halves, a warp 32 rows: first each row's maximum and sum, then squares of classes.
__device__ __forceinline__ void make_split_residuals(const SplitTeam& team, double scale) {
    const long long lane = threadIdx.x % KPL_WARP, n = team.wide.n, c = team.wide.c;
    const long long warp = blockIdx.x * kWarps + threadIdx.x / KPL_WARP;
    const long long warps = static_cast<long long>(gridDim.x) * kWarps;
    const float factor = static_cast<float>(scale);
    for (long long row = warp * KPL_WARP; row < team.residuals.ld; row += warps * KPL_WARP) {
        float my_peak = 0.0f;  // of row + lane
        double my_inverse = 0.0;
        for (int r = 0; r < KPL_WARP && row + r < n; ++r) {
            const float* Z = team.Z + (row + r) * team.ld;
            float peak = -3e38f;
            for (long long j = lane; j < c; j += KPL_WARP) peak = fmaxf(peak, load_fresh(Z + j));
            for (int mask = 1; mask < KPL_WARP; mask *= 2)
                peak = fmaxf(peak, __shfl_xor_sync(KPL_FULL_MASK, peak, mask));
            double total = 0.0;
            for (long long j = lane; j < c; j += KPL_WARP) total += expf((load_fresh(Z + j) - peak) * factor);
            total = warp_sum(total);
            if (lane == r) my_peak = peak, my_inverse = 1.0 / total;
        }
        for (long long column = 0; column < c; column += KPL_WARP)
            store_transposed(team.residuals, row, column, c, square_of_warp(team), [&](int r) {
                const float peak = __shfl_sync(KPL_FULL_MASK, my_peak, r);
                const double inverse = __shfl_sync(KPL_FULL_MASK, my_inverse, r);
                if (row + r >= n || column + lane >= c) return 0.0f;
                const float power = expf((load_fresh(team.Z + (row + r) * team.ld + column + lane) - peak) * factor);
                const double label = __ldg(team.wide.problem.P + (row + r) * c + column + lane);
                return static_cast<float>(kResidualScale * (power * inverse - label));
            });
    }
}

/// Parts of G = Xᵀ R, class by class, each over a range of rows.
__device__ __noinline__ void make_split_parts(const SplitTeam& team) {
    const long long c = team.wide.c, d = team.wide.d, splits = team.wide.splits, all = team.residuals.ld;
    const long long across = ceil_divide(d, kSplitTile), tiles = across * ceil_divide(c, kSplitTile);
    const long long rows = round_up(ceil_divide(all, splits), kSplitDepth);
    for (long long item = blockIdx.x; item < splits * tiles; item += gridDim.x) {
        const long long split = item / tiles, tile = item % tiles;
        const long long j = tile / across * kSplitTile, k = tile % across * kSplitTile;
        const long long first = split * rows, last = first + rows < all ? first + rows : all;  // may be no rows
        double* to = team.wide.parts + split * c * d;
        multiply_split_tile(team.residuals, j, c - j, team.columns, k, d - k, first, last, team.wide.tiles,
                            [&](int m, int n, float value) {
                                if (j + m < c && k + n < d)
                                    to[(j + m) * d + k + n] = value / (kRowScale * kResidualScale);
                            });
    }
}

}  // namespace
}  // namespace kpl
