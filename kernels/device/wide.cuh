// The published schedule (docs/method.md 3) with many columns: all blocks of a cooperative grid on one problem, phases
// with barriers between them. Everything in float64 but X.
//
//   Z = X W | R = softmax(Z / tau_i) - P, in place | parts of Xᵀ R, by ranges of rows | G = their sum, ‖G‖² | step
#pragma once

#include "device/primal_join.cuh"
#include "device/primal_rows.cuh"
#include "device/steps.cuh"
#include "device/wide_product.cuh"

namespace kpl {
namespace {

constexpr int kWarps = kThreads / KPL_WARP;

/// What the first thread of a block keeps for the others, and sums by warps.
struct alignas(16) WideShared {
    StepSize step;
    double eta, mass;
    long long is_stuck, done;
    double sums[4][kWarps];
};

/// All blocks of the grid on one problem. Arrays in its workspace: Z (n, c), parts (splits, c, d), scalars (blocks, 3).
struct WideTeam {
    const Problem& problem;
    unsigned* counter;
    long long n, c, d;
    int splits;
    double *Z, *parts, *scalars;
    void* tiles;  // in shared memory, two stages
};

__device__ __forceinline__ WideShared& wide_shared() { return *reinterpret_cast<WideShared*>(dynamic_shared()); }

__device__ __forceinline__ long long ceil_divide(long long a, long long b) { return (a + b - 1) / b; }

__device__ __forceinline__ WideTeam open_team(const Problem& problem, unsigned* counter, int splits, double* Z,
                                              double* parts) {
    return {problem, counter, problem.n, problem.c, problem.d, splits, Z, parts,
            parts + splits * problem.c * problem.d, dynamic_shared() + sizeof(WideShared)};
}

/// Leaves a number of the block where all blocks find it after a barrier of the grid.
__device__ __forceinline__ void leave_scalar(const WideTeam& team, int which, double value) {
    WideShared& shared = wide_shared();
    leave_sum(value, shared.sums[which]);
    __syncthreads();
    if (threadIdx.x == 0) team.scalars[3 * blockIdx.x + which] = block_total(shared.sums[which]);
}

/// Σ over the blocks of one of those numbers, the same bits everywhere.
__device__ __forceinline__ double grid_total(const WideTeam& team, int which) {
    WideShared& shared = wide_shared();
    double sum = 0.0;
    for (unsigned block = threadIdx.x; block < gridDim.x; block += kThreads)
        sum += load_fresh(team.scalars + 3 * block + which);
    leave_sum(sum, shared.sums[3]);
    __syncthreads();
    sum = block_total(shared.sums[3]);
    __syncthreads();
    return sum;
}

/// Z <- X W. Neighbouring blocks share rows of X.
__device__ __forceinline__ void make_logits(const WideTeam& team) {
    const long long across = ceil_divide(team.c, kTileN), tiles = across * ceil_divide(team.n, kTileM);
    for (long long tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const long long row = tile / across * kTileM, column = tile % across * kTileN;
        const LogitTiles operands = {team.problem.X + row * team.d, team.problem.W + column * team.d, team.d,
                                     team.n - row, team.c - column};
        multiply_tile(operands, team.d, team.tiles, [&](int m, int n, double value) {
            if (row + m < team.n && column + n < team.c) team.Z[(row + m) * team.c + column + n] = value;
        });
    }
}

__device__ __forceinline__ double warp_max(double value) {
#pragma unroll
    for (int mask = 1; mask < KPL_WARP; mask *= 2) {
        const double other = __shfl_xor_sync(KPL_FULL_MASK, value, mask);
        value = other > value ? other : value;
    }
    return value;
}

/// Z <- softmax(Z / tau_i) - P, a warp a row.
__device__ __forceinline__ void make_residuals(const WideTeam& team, double scale) {
    const long long lane = threadIdx.x % KPL_WARP, warp = blockIdx.x * kWarps + threadIdx.x / KPL_WARP;
    for (long long row = warp; row < team.n; row += static_cast<long long>(gridDim.x) * kWarps) {
        double* Z = team.Z + row * team.c;
        const double* P = team.problem.P + row * team.c;
        double peak = -infinity(), total = 0.0;
        for (long long j = lane; j < team.c; j += KPL_WARP) {
            const double z = load_fresh(Z + j);
            peak = z > peak ? z : peak;
        }
        peak = warp_max(peak);
        for (long long j = lane; j < team.c; j += KPL_WARP) {
            const double power = exp((load_fresh(Z + j) - peak) * scale);
            Z[j] = power;
            total += power;
        }
        const double inverse = 1.0 / warp_sum(total);
        for (long long j = lane; j < team.c; j += KPL_WARP) Z[j] = Z[j] * inverse - __ldg(P + j);
    }
}

/// Parts of G = Xᵀ R, class by class, each over a range of rows.
__device__ __forceinline__ void make_parts(const WideTeam& team) {
    const long long across = ceil_divide(team.d, kTileN), down = ceil_divide(team.c, kTileM);
    const long long rows = ceil_divide(ceil_divide(team.n, team.splits), kDepth) * kDepth;
    for (long long item = blockIdx.x; item < team.splits * across * down; item += gridDim.x) {
        const long long split = item / (across * down), tile = item % (across * down);
        const long long j = tile / across * kTileM, k = tile % across * kTileN;
        const long long first = split * rows < team.n ? split * rows : team.n;
        const long long depth = team.n - first < rows ? team.n - first : rows;
        const GradientTiles operands = {team.Z + first * team.c + j, team.problem.X + first * team.d + k,
                                        team.c, team.d, depth, team.c - j, team.d - k};
        double* to = team.parts + split * team.c * team.d;
        multiply_tile(operands, depth, team.tiles, [&](int m, int n, double value) {
            if (j + m < team.c && k + n < team.d) to[(j + m) * team.d + k + n] = value;
        });
    }
}

/// G, the sum of its parts, in place of the first one; ‖G‖² of this block's entries.
__device__ __forceinline__ double add_parts(const WideTeam& team) {
    const long long entries = team.c * team.d, stride = static_cast<long long>(gridDim.x) * kThreads;
    double square = 0.0;
    for (long long e = blockIdx.x * kThreads + threadIdx.x; e < entries; e += stride) {
        double sum = 0.0;
        for (int split = 0; split < team.splits; ++split) sum += load_fresh(team.parts + split * entries + e);
        team.parts[e] = sum;
        square = fma(sum, sum, square);
    }
    return square;
}

/// W <- unit columns of W - eta G, a warp a class; whether a bit of this warp's classes changed. A column that vanished
/// stays as it was.
__device__ __forceinline__ bool move_classes(const WideTeam& team, double eta) {
    const long long lane = threadIdx.x % KPL_WARP, warp = blockIdx.x * kWarps + threadIdx.x / KPL_WARP;
    bool has_changed = false;
    for (long long j = warp; j < team.c; j += static_cast<long long>(gridDim.x) * kWarps) {
        double* W = team.problem.W + j * team.d;
        const double* G = team.parts + j * team.d;
        double square = 0.0;
        for (long long k = lane; k < team.d; k += KPL_WARP) {
            const double moved = load_fresh(W + k) - eta * load_fresh(G + k);
            square = fma(moved, moved, square);
        }
        const double length = sqrt(warp_sum(square));
        if (length == 0.0) continue;
        for (long long k = lane; k < team.d; k += KPL_WARP) {
            const double old = load_fresh(W + k), unit = (old - eta * load_fresh(G + k)) / length;
            has_changed |= unit != old;
            W[k] = unit;
        }
    }
    return has_changed;
}

/// W <- T, and what the proof of freezing needs: max ‖x_i‖², Σ P, whether a text proxy is zero.
__device__ __forceinline__ void start_wide(const WideTeam& team, double lr, double tau_i, double movement) {
    const long long lane = threadIdx.x % KPL_WARP, warp = blockIdx.x * kWarps + threadIdx.x / KPL_WARP;
    const long long warps = static_cast<long long>(gridDim.x) * kWarps;
    const Problem& problem = team.problem;
    double zeros = 0.0, mass = 0.0, longest = 0.0;
    for (long long j = warp; j < team.c; j += warps) {
        bool is_zero = true;
        for (long long k = lane; k < team.d; k += KPL_WARP) {
            const double value = __ldg(problem.T + j * team.d + k);
            problem.W[j * team.d + k] = value;
            is_zero &= value == 0.0;
        }
        zeros += __all_sync(KPL_FULL_MASK, is_zero) ? 1.0 : 0.0;
    }
    for (long long i = warp; i < team.n; i += warps) {
        double square = 0.0;
        for (long long k = lane; k < team.d; k += KPL_WARP) {
            const double x = __ldg(problem.X + i * team.d + k);
            square = fma(x, x, square);
        }
        square = warp_sum(square);
        longest = square > longest ? square : longest;
        for (long long j = lane; j < team.c; j += KPL_WARP) mass += __ldg(problem.P + i * team.c + j);
    }
    WideShared& shared = wide_shared();
    if (lane == 0) shared.sums[3][threadIdx.x / KPL_WARP] = longest;
    leave_scalar(team, 0, zeros);
    leave_scalar(team, 1, mass);
    if (threadIdx.x == 0) {
        for (int i = 0; i < kWarps; ++i) longest = shared.sums[3][i] > longest ? shared.sums[3][i] : longest;
        team.scalars[3 * blockIdx.x + 2] = longest;
    }
    grid_barrier(team.counter, gridDim.x);
    zeros = grid_total(team, 0);
    mass = grid_total(team, 1);
    if (threadIdx.x == 0) {
        for (unsigned block = 0; block < gridDim.x; ++block) {
            const double other = load_fresh(team.scalars + 3 * block + 2);
            longest = other > longest ? other : longest;
        }
        const double allowed = allowed_movement(movement, mass, team.n, zeros > 0.0);
        shared.step = first_step(lr, tau_i, team.n, team.c, longest, allowed);
        shared.mass = mass, shared.done = 0, shared.is_stuck = 0;
    }
    grid_barrier(team.counter, gridDim.x);
}

/// One step from parts of G that are complete; `after_move()` once this warp's classes are written. Whether it is the
/// last: W came to rest, or the rest does not matter.
template <typename AfterMove>
__device__ __forceinline__ bool take_wide_step(const WideTeam& team, long long iters, bool& is_settled,
                                               AfterMove after_move) {
    WideShared& shared = wide_shared();
    leave_scalar(team, 0, add_parts(team));
    grid_barrier(team.counter, gridDim.x);
    const double square = grid_total(team, 0);
    if (threadIdx.x == 0) {
        shared.eta = next_eta(shared.step, square);
        shared.is_stuck = is_frozen(shared.step, shared.done, iters - shared.done);
        shared.done += !shared.is_stuck;
    }
    __syncthreads();
    if (shared.is_stuck) return true;
    // Another place than the squares: a slower block may still read those.
    leave_scalar(team, 1, move_classes(team, shared.eta) ? 1.0 : 0.0);
    after_move();
    grid_barrier(team.counter, gridDim.x);
    is_settled = grid_total(team, 1) == 0.0;
    return is_settled;
}

__device__ __forceinline__ void write_wide_record(const WideShared& shared, Record& record, bool is_settled) {
    record.iterations = shared.done, record.halvings = shared.step.halvings, record.form = kPrimalForm;
    record.converged = is_settled || (shared.done > 0 && is_flat(shared.step));
    record.frozen = shared.is_stuck;
    record.gradient_norm = sqrt(shared.step.square), record.mass = shared.mass, record.lr = shared.step.lr;
}

/// After the last step.
__device__ __forceinline__ void end_wide(const WideTeam& team, bool is_settled) {
    join_equal_classes(team.problem, blockIdx.x * kWarps + threadIdx.x / KPL_WARP,
                       static_cast<long long>(gridDim.x) * kWarps);
    if (blockIdx.x == 0 && threadIdx.x == 0) write_wide_record(wide_shared(), *team.problem.record, is_settled);
    __syncthreads();
}

}  // namespace
}  // namespace kpl
