// One pass over the rows in a primal run with few columns: tile by tile logits, softmax, residuals, Xᵀ R in registers.
#pragma once

#include "device/primal_team.cuh"

namespace kpl {
namespace {

/// Logits of one tile in (COLUMNS, ROWS) lanes of the first warp to residuals: softmax over the columns and the last
/// class, whose exponent is 0, less the labels. CP lanes share a row. `label` is P_ij.
template <int CP>
__device__ __forceinline__ double residual_of(double z, double label, bool is_active, double scale) {
    double base = is_active && z > 0.0 ? z : 0.0;
#pragma unroll
    for (int mask = 1; mask < CP; mask *= 2) {
        const double other = __shfl_xor_sync(KPL_FULL_MASK, base, mask);
        base = other > base ? other : base;
    }
    const double power = is_active ? exp((z - base) * scale) : 0.0;
    double total = power;
#pragma unroll
    for (int mask = 1; mask < CP; mask *= 2) total += __shfl_xor_sync(KPL_FULL_MASK, total, mask);
    return is_active ? power / (total + exp(-base * scale)) - label : 0.0;
}

/// G_j += Σ_i R_ij x_i over the rows of the block; each thread its own coordinates.
template <int COLUMNS, int ROWS>
__device__ __forceinline__ void add_gradient(const double* residual, int columns, const double (&x)[ROWS][kOwn],
                                             double (&G)[COLUMNS][kOwn]) {
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) {
        if (j >= columns) break;
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const double factor = residual[j * ROWS + r];
#pragma unroll
            for (int k = 0; k < kOwn; ++k) G[j][k] = fma(factor, x[r][k], G[j][k]);
        }
    }
}

/// The warp's share of the logits of a tile, x_i · (W_j - W_c).
template <int COLUMNS, int ROWS>
__device__ __forceinline__ void leave_logits(const PrimalTeam& team, const double (&x)[ROWS][kOwn]) {
    const int ld = kOwn * blockDim.x, lane = threadIdx.x % KPL_WARP;
    auto& shared = shared_of_block<COLUMNS, ROWS>();
    const double* last = shared.W + (team.c - 1) * ld + own_first();
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) {
        if (j >= team.columns) break;
        const double* own = shared.W + j * ld + own_first();
        double v[kOwn], z[ROWS];
#pragma unroll
        for (int k = 0; k < kOwn; ++k) v[k] = own[k] - last[k];
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            z[r] = 0.0;
#pragma unroll
            for (int k = 0; k < kOwn; ++k) z[r] = fma(x[r][k], v[k], z[r]);
        }
        const double sum = reduce_rows<ROWS>(z);
        if (lane < ROWS) shared.partial[j * ROWS + lane][threadIdx.x / KPL_WARP] = sum;
    }
}

template <int ROWS>
__device__ __forceinline__ void widen_tile(const float* slot, double (&x)[ROWS][kOwn]) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        const float4 four = *reinterpret_cast<const float4*>(slot + r * kOwn * blockDim.x + own_first());
        x[r][0] = four.x, x[r][1] = four.y, x[r][2] = four.z, x[r][3] = four.w;
    }
}

/// One pass over the rows of the block: its own sum of Xᵀ R to global memory. `scale` is 1 / tau_i.
template <int COLUMNS, int ROWS>
__device__ __forceinline__ void pass_over_rows(PrimalTeam& team, double scale) {
    constexpr int CP = COLUMNS <= 1 ? 1 : COLUMNS <= 2 ? 2 : COLUMNS <= 4 ? 4 : 8;
    static_assert(ROWS * CP <= KPL_WARP && (ROWS & (ROWS - 1)) == 0, "one warp makes the residuals of a tile");
    auto& shared = shared_of_block<COLUMNS, ROWS>();
    const int my_row = threadIdx.x / CP, my_column = threadIdx.x % CP;
    double G[COLUMNS][kOwn] = {};
    RowTiles& rows = team.rows;
#pragma unroll 1
    for (int i = 0, due = 0, kept = 0; i < rows.tiles; ++i) {
        due += rows.streamed;  // streamed tiles are spread evenly between the resident ones
        const bool is_streamed = due >= rows.tiles;
        int tile = kept;
        const float* slot = is_streamed ? take_streamed(rows, tile) : slot_of(rows, kSlots + kept++);
        due -= is_streamed ? rows.tiles : 0;
        const long long row = rows.row + static_cast<long long>(tile) * ROWS + my_row;
        const bool is_active = my_row < ROWS && my_column < team.columns && row < rows.n;
        const double label = is_active ? __ldg(team.problem.P + row * team.c + my_column) : 0.0;
        double x[ROWS][kOwn];
        widen_tile<ROWS>(slot, x);
        if (is_streamed) fetch_next(rows, rows.slot ^ 1);
        leave_logits<COLUMNS, ROWS>(team, x);
        __syncthreads();
        if (threadIdx.x < KPL_WARP) {
            double z = 0.0;
            if (is_active)
#pragma unroll 2
                for (unsigned warp = 0; warp < blockDim.x / KPL_WARP; ++warp)
                    z += shared.partial[my_column * ROWS + my_row][warp];
            const double r = residual_of<CP>(z, label, is_active, scale);
            if (my_row < ROWS && my_column < COLUMNS) shared.residual[my_column * ROWS + my_row] = r;
        }
        __syncthreads();
        add_gradient<COLUMNS, ROWS>(shared.residual, team.columns, x, G);
    }
    if (own_first() >= team.width) return;
    double* to = partial_of(team) + static_cast<long long>(blockIdx.x) * team.columns * team.width + own_first();
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) {
        if (j >= team.columns) break;
#pragma unroll
        for (int k = 0; k < kOwn; ++k) to[j * team.width + k] = G[j][k];
    }
}

}  // namespace
}  // namespace kpl
