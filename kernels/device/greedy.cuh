// Greedy Sinkhorn in the log domain by one block (docs/method.md 2; kpl_engine/solver/greenkhorn.py is the definition).
//
// The logarithms (n, c) stay as they are; the state is one potential and one running sum per row and per column. A
// thread owns every 256th row and column, so only the choice of a line, its peak and its mass are met over the block:
// three barriers a step, n + c gaps to compare, 3 n (a column) or 3 c (a row) exponentials. Predicted on an H200:
// 0.65 us a step up to n = 256, latency of the three reductions and of exp; 22 us at n = 27,558, exponentials and L2.
#pragma once

#include "device/reduce.cuh"

namespace kpl {
namespace greedy {

struct State {
    const double* logs;  // (n, c)
    long long n;
    int c;
    double *rows, *row_sums;             // (n)
    double *columns, *column_sums, *aims;  // (c); a column that cannot be rescaled has its sum at its aim
};

// One row or column: its logarithms lie `stride` apart, and cross `count` lines with potentials and sums of their own.
struct Line {
    const double* logs;
    long long stride, count;
    const double* crossing;
    double* crossing_sums;
    double before, aim;
};

static __device__ __forceinline__ double entry(const Line& line, long long i) {
    return line.logs[i * line.stride] + line.crossing[i];
}

// Gives the line the mass `aim`; its new potential, NaN if it has no mass. From a fresh log-sum-exp, so no error
// accumulates. The very expressions of kernels/cpu/greenkhorn.h, peak and all, though they cost a reduction and an
// exponential more than scaling the old masses would: where the softmax is certain, images of one class tie, and a row
// ties with its column, up to how these sums round; another way of rounding takes other steps and ends at other labels.
static __device__ double rescale(const Line& line, BlockReduce& block) {
    double peak = minus_infinity(), mass = 0.0;
    for (long long i = threadIdx.x; i < line.count; i += blockDim.x) peak = larger(entry(line, i), peak);
    peak = block.max(peak);
    if (peak == minus_infinity()) return __longlong_as_double(0x7ff8000000000000LL);
    for (long long i = threadIdx.x; i < line.count; i += blockDim.x) mass += exp(entry(line, i) - peak);
    const double potential = log(line.aim) - (peak + log(block.sum(mass)));
    for (long long i = threadIdx.x; i < line.count; i += blockDim.x)
        line.crossing_sums[i] += exp(entry(line, i) + potential) - exp(entry(line, i) + line.before);
    return potential;
}

static __device__ void rescale_column(const State& state, int j, BlockReduce& block) {
    const Line line = {state.logs + j, state.c, state.n, state.rows, state.row_sums, state.columns[j], state.aims[j]};
    const double potential = rescale(line, block);
    if (int(threadIdx.x) != j % int(blockDim.x)) return;
    if (isnan(potential)) {
        state.aims[j] = state.column_sums[j] = 0.0;
        return;
    }
    state.columns[j] = potential;
    state.column_sums[j] = line.aim;
}

static __device__ void rescale_row(const State& state, long long i, BlockReduce& block) {
    const double aim = 1.0 / double(state.n);
    const Line line = {state.logs + i * state.c, 1, state.c, state.columns, state.column_sums, state.rows[i], aim};
    const double potential = rescale(line, block);
    if (int(threadIdx.x) != int(i % blockDim.x)) return;
    state.row_sums[i] = aim;
    if (!isnan(potential)) state.rows[i] = potential;
}

// Rows start at exactly 1, which they are by construction: computed sums differ in the last bit and would break ties at
// random. A class that is impossible for every image, not only beyond what exp can hold, cannot be rescaled.
static __device__ void start(const State& state, const double* sums, const double* targets, BlockReduce& block) {
    for (long long i = threadIdx.x; i < state.n; i += blockDim.x) {
        state.rows[i] = 0.0;
        state.row_sums[i] = 1.0;
    }
    for (int j = 0; j < state.c; ++j) {
        double peak = 0.0;
        if (sums[j] == 0.0) {
            peak = minus_infinity();
            for (long long i = threadIdx.x; i < state.n; i += blockDim.x)
                peak = larger(state.logs[i * state.c + j], peak);
            peak = block.max(peak);
        }
        if (int(threadIdx.x) != j % int(blockDim.x)) continue;
        state.columns[j] = 0.0;
        state.column_sums[j] = sums[j];
        state.aims[j] = peak == minus_infinity() ? 0.0 : targets[j];
    }
}

// The line with the largest gap, rows before columns among equals and the first index first: row i is i, column j is
// n + j.
static __device__ Place furthest(const State& state, BlockReduce& block) {
    const double aim = 1.0 / double(state.n);
    Place mine = {-1.0, 0x7fffffffffffffffLL};
    for (long long i = threadIdx.x; i < state.n; i += blockDim.x) {
        const double gap = fabs(state.row_sums[i] - aim);
        if (gap > mine.size) mine = {gap, i};
    }
    for (int j = int(threadIdx.x); j < state.c; j += int(blockDim.x)) {
        const double gap = fabs(state.column_sums[j] - state.aims[j]);
        if (gap > mine.size) mine = {gap, state.n + j};
    }
    return block.first(mine);
}

// `iters` greedy steps; potentials in `rows` and `columns`.
static __device__ void run(const State& state, const double* sums, const double* targets, long long iters,
                           BlockReduce& block) {
    start(state, sums, targets, block);
    for (long long done = 0; done < iters; ++done) {
        const Place worst = furthest(state, block);
        if (!(worst.size > 0.0)) break;
        if (worst.index >= state.n)
            rescale_column(state, int(worst.index - state.n), block);
        else
            rescale_row(state, worst.index, block);
    }
    __syncthreads();
}

}  // namespace greedy
}  // namespace kpl
