// The published schedule (docs/method.md 3) with few columns: a team of blocks, all steps in one launch, float64
// arithmetic on float32 features that are read once a step. kernels/learn_proxies_primal.cu says what it costs.
//
// A step: each block adds up Xᵀ R over its rows (registers, one partial sum a block); barrier; the partial sums are
// added over the blocks in their order, each block a few coordinates; barrier; every block takes the same step, with
// the same bits, on its own copy of W in shared memory.
//
// Products run over the c-1 columns of W_j - W_c, and the last column of G is Xᵀ(1 - Σ_j P_j) - Σ_j G_j (method.md 3a).
#pragma once

#include "device/primal_join.cuh"
#include "device/primal_pass.cuh"
#include "device/primal_start.cuh"

namespace kpl {
namespace {

/// `G` (COLUMNS + 1 columns) of this thread's coordinates, the last one from the rest; what it adds to ‖G‖_F².
template <int COLUMNS>
__device__ __forceinline__ double read_gradient(const PrimalTeam& team, double (&G)[COLUMNS + 1][kOwn]) {
    double square = 0.0;
    const bool owns = own_first() < team.width;
#pragma unroll
    for (int k = 0; k < kOwn; ++k) {
        double rest = owns ? load_fresh(rest_of(team) + own_first() + k) : 0.0;
#pragma unroll
        for (int j = 0; j < COLUMNS; ++j) {
            const bool is_there = owns && j < team.columns;
            G[j][k] = is_there ? load_fresh(total_of(team) + j * team.width + own_first() + k) : 0.0;
            rest -= G[j][k];
            square = fma(G[j][k], G[j][k], square);
        }
        G[COLUMNS][k] = rest;
        square = fma(rest, rest, square);
    }
    return square;
}

/// W <- unit columns of W - eta G; whether a bit of W changed anywhere. A column that vanished stays as it was.
template <int COLUMNS, int ROWS>
__device__ __forceinline__ bool move_columns(const PrimalTeam& team, const double (&G)[COLUMNS + 1][kOwn], double eta) {
    const int ld = kOwn * blockDim.x;
    double* own = shared_of_block<COLUMNS, ROWS>().W + own_first();
    double(*sums)[kMaxWarps] = shared_of_block<COLUMNS, ROWS>().sums + 1;
#pragma unroll
    for (int j = 0; j <= COLUMNS; ++j) {
        const int column = j < COLUMNS ? j : team.columns;  // G keeps the last column last
        if (j < COLUMNS && j >= team.columns) continue;
        double square = 0.0;
#pragma unroll
        for (int k = 0; k < kOwn; ++k) {
            const double moved = own[column * ld + k] - eta * G[j][k];
            square = fma(moved, moved, square);
        }
        leave_sum(square, sums[column]);
    }
    __syncthreads();
    bool has_changed = false;
#pragma unroll
    for (int j = 0; j <= COLUMNS; ++j) {
        const int column = j < COLUMNS ? j : team.columns;
        if (j < COLUMNS && j >= team.columns) continue;
        const double length = sqrt(block_total(sums[column]));
        if (length == 0.0) continue;
#pragma unroll
        for (int k = 0; k < kOwn; ++k) {
            const double old = own[column * ld + k], unit = (old - eta * G[j][k]) / length;
            has_changed |= unit != old;
            own[column * ld + k] = unit;
        }
    }
    leave_sum(has_changed ? 1.0 : 0.0, sums[team.c]);
    __syncthreads();
    return block_total(sums[team.c]) != 0.0;
}

/// Steps until all are taken, no bit of W changes or the rest is proven not to matter. Whether W came to rest.
template <int COLUMNS, int ROWS>
__device__ __forceinline__ bool take_steps(PrimalTeam& team, const PrimalOptions& options) {
    auto& shared = shared_of_block<COLUMNS, ROWS>();
    StepRule& rule = shared.rule;
    const double scale = 1.0 / options.tau_i;
    bool is_settled = false;
#pragma unroll 1
    while (!is_settled && rule.done < options.iters) {
        pass_over_rows<COLUMNS, ROWS>(team, scale);
        grid_barrier(team.counter, gridDim.x);
        add_blocks(team, team.columns, shared.sums, total_of(team));
        grid_barrier(team.counter, gridDim.x);
        double G[COLUMNS + 1][kOwn];
        leave_sum(read_gradient<COLUMNS>(team, G), shared.sums[0]);
        __syncthreads();
        if (threadIdx.x == 0) {
            rule.eta = next_eta(rule.step, block_total(shared.sums[0]));
            rule.is_stuck = is_frozen(rule.step, rule.done, options.iters - rule.done);
            rule.done += !rule.is_stuck;
        }
        __syncthreads();
        if (rule.is_stuck) break;
        is_settled = !move_columns<COLUMNS, ROWS>(team, G, rule.eta);
    }
    return is_settled;
}

template <int COLUMNS, int ROWS>
__device__ __forceinline__ void write_primal(const PrimalTeam& team, int d, bool is_settled) {
    if (blockIdx.x != 0) return;
    for (int j = 0; j < team.c; ++j)
        for (int k = 0; k < kOwn; ++k)
            if (own_first() + k < d)
                team.problem.W[static_cast<long long>(j) * d + own_first() + k] =
                    shared_of_block<COLUMNS, ROWS>().W[j * kOwn * blockDim.x + own_first() + k];
    if (threadIdx.x != 0) return;
    const StepRule& rule = shared_of_block<COLUMNS, ROWS>().rule;
    Record& record = *team.problem.record;
    record.iterations = rule.done, record.halvings = rule.step.halvings, record.form = kPrimalForm;
    record.converged = is_settled || (rule.done > 0 && is_flat(rule.step));
    record.frozen = rule.is_stuck;
    record.gradient_norm = sqrt(rule.step.square), record.mass = rule.mass, record.lr = rule.step.lr;
}

/// All steps of one problem by all blocks of the grid.
template <int COLUMNS, int ROWS>
__device__ __forceinline__ void run_primal(const Problem& problem, unsigned* counter, int max_resident,
                                           const PrimalOptions& options) {
    const int c = static_cast<int>(problem.c), d = static_cast<int>(problem.d);
    double* W = shared_of_block<COLUMNS, ROWS>().W;
    PrimalTeam team = {problem, {}, counter, c, c - 1, (d + kOwn - 1) / kOwn * kOwn};
    auto* slots = reinterpret_cast<float*>(W + c * kOwn * blockDim.x);
    team.rows = open_rows(problem.X, problem.n, d, ROWS, max_resident, slots);
    const bool has_zero = start_from_text<COLUMNS, ROWS>(team, d);
    set_up<COLUMNS, ROWS>(team, options, has_zero);
    const bool is_settled = take_steps<COLUMNS, ROWS>(team, options);
    copy_async_wait<0>();
    write_primal<COLUMNS, ROWS>(team, d, is_settled);
    __syncthreads();
    if (blockIdx.x == 0) join_equal_classes(problem, threadIdx.x / KPL_WARP, blockDim.x / KPL_WARP);
}

}  // namespace
}  // namespace kpl
