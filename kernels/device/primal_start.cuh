// Before the first step of a primal run with few columns: W <- T, the last column's part of G that never changes, and
// what the proof of freezing needs.
#pragma once

#include "device/primal_team.cuh"

namespace kpl {
namespace {

/// W <- T; whether a text proxy is zero.
template <int COLUMNS, int ROWS>
__device__ __forceinline__ bool start_from_text(const PrimalTeam& team, int d) {
    auto& shared = shared_of_block<COLUMNS, ROWS>();
    bool has_zero = false;
    for (int j = 0; j < team.c; ++j) {
        double largest = 0.0;
        for (int k = 0; k < kOwn; ++k) {
            const int at = own_first() + k;
            const double value = at < d ? __ldg(team.problem.T + static_cast<long long>(j) * d + at) : 0.0f;
            shared.W[j * kOwn * blockDim.x + at] = value;
            largest = fabs(value) > largest ? fabs(value) : largest;
        }
        leave_sum(largest > 0.0 ? 1.0 : 0.0, shared.sums[j]);
    }
    __syncthreads();
    for (int j = 0; j < team.c; ++j) has_zero |= block_total(shared.sums[j]) == 0.0;
    __syncthreads();
    return has_zero;
}

/// Σ_j P_ij.
__device__ __forceinline__ double row_mass(const Problem& problem, long long row) {
    double total = 0.0;
#pragma unroll 1
    for (long long j = 0; j < problem.c; ++j) total += __ldg(problem.P + row * problem.c + j);
    return total;
}

/// The largest ‖x_i‖² and Σ P of the block's rows; a warp takes a row at a time.
__device__ __forceinline__ void measure_rows(const PrimalTeam& team, long long last, double* longest, double* masses) {
    const int lane = threadIdx.x % KPL_WARP, warp = threadIdx.x / KPL_WARP, warps = blockDim.x / KPL_WARP;
    const Problem& problem = team.problem;
    double most = 0.0, mass = 0.0;
    for (long long row = team.rows.row + warp; row < last; row += warps) {
        double square = 0.0;
        for (long long k = lane; k < problem.d; k += KPL_WARP) {
            const double x = __ldg(problem.X + row * problem.d + k);
            square = fma(x, x, square);
        }
        square = warp_sum(square);
        most = square > most ? square : most;
        mass += row_mass(problem, row);
    }
    if (lane == 0) longest[warp] = most, masses[warp] = mass;
}

/// Xᵀ(1 - Σ_j P_j) over the block's rows, to where its sum of Xᵀ R will be; each thread its own coordinates.
__device__ __forceinline__ void leave_rest(const PrimalTeam& team, long long last) {
    const Problem& problem = team.problem;
    double rest[kOwn] = {};
    for (long long row = team.rows.row; row < last; ++row) {
        const double factor = 1.0 - row_mass(problem, row);
#pragma unroll
        for (int k = 0; k < kOwn; ++k)
            if (own_first() + k < problem.d)
                rest[k] = fma(factor, double(__ldg(problem.X + row * problem.d + own_first() + k)), rest[k]);
    }
    if (own_first() >= team.width) return;
    for (int k = 0; k < kOwn; ++k)
        partial_of(team)[static_cast<long long>(blockIdx.x) * team.width + own_first() + k] = rest[k];
}

/// Before the first step: the rest, and what the proof of freezing needs, max ‖x_i‖² and Σ P over all rows.
// Not inlined, and its own copy of the team: it runs once, and would cost the steps registers.
template <int COLUMNS, int ROWS>
__device__ __noinline__ void set_up(const PrimalTeam team, const PrimalOptions& options, bool has_zero) {
    auto& shared = shared_of_block<COLUMNS, ROWS>();
    const long long n = team.problem.n, end = team.rows.row + static_cast<long long>(team.rows.tiles) * ROWS;
    const long long last = end < n ? end : n;
    measure_rows(team, last, shared.sums[0], shared.sums[1]);
    leave_rest(team, last);
    __syncthreads();
    double longest = 0.0, mass = 0.0;
    for (unsigned warp = 0; warp < blockDim.x / KPL_WARP; ++warp) {
        longest = shared.sums[0][warp] > longest ? shared.sums[0][warp] : longest;
        mass += shared.sums[1][warp];
    }
    if (threadIdx.x == 0) scalars_of(team)[2 * blockIdx.x] = longest, scalars_of(team)[2 * blockIdx.x + 1] = mass;
    grid_barrier(team.counter, gridDim.x);
    add_blocks(team, 1, shared.sums, rest_of(team));
    if (threadIdx.x == 0) {
        longest = mass = 0.0;
        for (unsigned block = 0; block < gridDim.x; ++block) {
            const double own = load_fresh(scalars_of(team) + 2 * block);
            longest = own > longest ? own : longest;
            mass += load_fresh(scalars_of(team) + 2 * block + 1);
        }
        const double movement = allowed_movement(options.movement, mass, n, has_zero);
        shared.rule = {first_step(options.lr, options.tau_i, n, team.c, longest, movement), 0.0, mass, 0, 0};
    }
    grid_barrier(team.counter, gridDim.x);
}

}  // namespace
}  // namespace kpl
