// The published schedule (docs/method.md 3) with few columns: a team of blocks, all steps in one launch, float64
// arithmetic on float32 features that are read once a step. kernels/learn_proxies_primal.cu says what it costs.
//
// A step: each block adds up Xᵀ R over its rows (registers, one partial sum a block); barrier; the partial sums are
// added over the blocks in their order, each block a few coordinates; barrier; every block takes the same step, with the
// same bits, on its own copy of W in shared memory.
//
// Products run over the c-1 columns of W_j - W_c, and the last column of G is Xᵀ(1 - Σ_j P_j) - Σ_j G_j (method.md 3a).
#pragma once

#include "device/primal_join.cuh"
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

/// total <- Σ of the blocks' partial sums, `columns` columns. Four coordinates (one sector) at a time a block; its
/// threads share the partial sums and add in an order that does not change from run to run.
__device__ __forceinline__ void add_blocks(const PrimalTeam& team, int columns, double (*sums)[kMaxWarps],
                                           double* total) {
    const int entries = columns * team.width, groups = blockDim.x / kOwn, lane = threadIdx.x % KPL_WARP;
    for (int first = kOwn * blockIdx.x; first < entries; first += kOwn * gridDim.x) {
        const double* from = partial_of(team) + first + threadIdx.x % kOwn;
        double sum = 0.0;
#pragma unroll 4
        for (unsigned block = threadIdx.x / kOwn; block < gridDim.x; block += groups)
            sum += load_fresh(from + static_cast<long long>(block) * entries);
        for (int mask = kOwn; mask < KPL_WARP; mask *= 2) sum += __shfl_xor_sync(KPL_FULL_MASK, sum, mask);
        if (lane < kOwn) sums[lane][threadIdx.x / KPL_WARP] = sum;
        __syncthreads();
        if (threadIdx.x < kOwn) total[first + threadIdx.x] = block_total(sums[threadIdx.x]);
        __syncthreads();
    }
}

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
    team.rows = open_rows(problem.X, problem.n, d, ROWS, max_resident, reinterpret_cast<float*>(W + c * kOwn * blockDim.x));
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
