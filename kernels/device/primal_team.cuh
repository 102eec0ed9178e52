// What the blocks of a primal run with few columns hold: in shared memory each, in the workspace of the problem
// together.
#pragma once

#include "device/primal_rows.cuh"
#include "device/problem.cuh"
#include "device/steps.cuh"

namespace kpl {
namespace {

/// The step size, kept by the first thread, and what it tells the others.
struct StepRule {
    StepSize step;
    double eta, mass;
    long long done, is_stuck;
};

constexpr int kMaxWarps = 8;  // d <= 1024

/// Shared memory of a block, everything of constant size first: such addresses need no registers.
template <int COLUMNS, int ROWS>
struct PrimalShared {
    StepRule rule;
    double partial[COLUMNS * ROWS][kMaxWarps];  // logits of a tile, by warps
    double residual[COLUMNS * ROWS];
    double sums[COLUMNS + 4][kMaxWarps];
    alignas(16) double W[2];  // (c, 4 blockDim.x): a thread reads only what it owns. The tiles follow.
};

template <int COLUMNS, int ROWS>
__device__ __forceinline__ PrimalShared<COLUMNS, ROWS>& shared_of_block() {
    return *reinterpret_cast<PrimalShared<COLUMNS, ROWS>*>(dynamic_shared());
}

/// All blocks of the grid on one problem.
struct PrimalTeam {
    const Problem& problem;
    RowTiles rows;
    unsigned* counter;
    int c, columns, width;  // c - 1 columns are multiplied; d rounded up to fours
};

/// (width) Xᵀ(1 - Σ_j P_j).
__device__ __forceinline__ double* rest_of(const PrimalTeam& team) { return team.problem.workspace; }

/// (columns, width) Xᵀ R.
__device__ __forceinline__ double* total_of(const PrimalTeam& team) { return team.problem.workspace + team.width; }

/// (blocks, columns, width) each block's own sum of it, and each block's max ‖x_i‖² and Σ P before.
__device__ __forceinline__ double* scalars_of(const PrimalTeam& team) { return total_of(team) + team.c * team.width; }
__device__ __forceinline__ double* partial_of(const PrimalTeam& team) { return scalars_of(team) + 2 * gridDim.x; }

struct PrimalOptions {
    double lr, tau_i, movement;
    long long iters;
};

__device__ __forceinline__ int own_first() { return kOwn * static_cast<int>(threadIdx.x); }

/// total <- Σ of the blocks' partial sums, `columns` columns. Four coordinates (one sector) at a time a block; its
/// threads share the partial sums and add in an order that does not change from run to run.
__device__ __forceinline__ void add_blocks(const PrimalTeam& team, int columns, double (*sums)[kMaxWarps],
                                           double* total) {
    const int entries = columns * team.width, groups = blockDim.x / kOwn, lane = threadIdx.x % KPL_WARP;
    for (int first = kOwn * blockIdx.x; first < entries; first += kOwn * gridDim.x) {
        const double* from = partial_of(team) + first + threadIdx.x % kOwn;
        double sum = 0.0;
#pragma unroll 8
        for (unsigned block = threadIdx.x / kOwn; block < gridDim.x; block += groups)
            sum += load_fresh(from + static_cast<long long>(block) * entries);
        for (int mask = kOwn; mask < KPL_WARP; mask *= 2) sum += __shfl_xor_sync(KPL_FULL_MASK, sum, mask);
        if (lane < kOwn) sums[lane][threadIdx.x / KPL_WARP] = sum;
        __syncthreads();
        if (threadIdx.x < kOwn) total[first + threadIdx.x] = block_total(sums[threadIdx.x]);
        __syncthreads();
    }
}

}  // namespace
}  // namespace kpl
