// Passes over the rows of the labels: each row is rewritten by the lanes that share it, columns are summed on the way.
//
// A row belongs to 1 to 32 lanes, the next power of two from c, so that few classes waste no lanes and many are read in
// whole lines. Its rewriting is a function object, rows(i, lane, width, c): the lanes of one row call it together (with
// c = 0 where there is no row), and it returns what the lane's last entry adds to its column.
#pragma once

#include "device/project.cuh"
#include "device/reduce.cuh"
#include "device/block_team.cuh"

namespace kpl {
namespace labels {

using tiles::kThreads;
using tiles::kWarps;
constexpr int kSharedOut = 8192;  // parts of column sums that every block adds up itself, rather than meet once more

// One problem, its team and this block's shared memory.
struct Scene {
    const Problem* problem;
    const BlockTeam* team;
    BlockReduce* block;
    int c;
    double* sums;      // (c) shared: the last column sums, the same in every block
    double* growing;   // (c) shared: what this block adds to the next
    double* lanes;     // (kWarps, 32) shared
    double* parts;     // (2, team, c) global, two sets that take turns: one is read while the next is written
    double* total;     // (c) global
    double* masses;    // (team, 2) global
    int turn;
};

static __device__ __forceinline__ int lanes_of_row(int c) {
    int width = 1;
    while (width < c && width < KPL_WARP) width *= 2;
    return width;
}

// Column sums of all blocks from those of this one, `growing`, to `sums`.
static __device__ void meet_columns(Scene& scene) {
    const BlockTeam& team = *scene.team;
    const int c = scene.c, thread = int(threadIdx.x);
    if (team.size == 1) {
        __syncthreads();
        for (int j = thread; j < c; j += kThreads) scene.sums[j] = scene.growing[j];
        __syncthreads();
        return;
    }
    double* parts = scene.parts + (long long)(scene.turn) * team.size * c;
    scene.turn ^= 1;
    for (int j = thread; j < c; j += kThreads) parts[(long long)(team.rank) * c + j] = scene.growing[j];
    team.barrier();
    const bool shares = (long long)(team.size) * c > kSharedOut;
    const int stride = shares ? team.size * kThreads : kThreads;
    for (int j = shares ? team.rank * kThreads + thread : thread; j < c; j += stride) {
        double total = 0.0;
#pragma unroll 8
        for (int part = 0; part < team.size; ++part) total += load_fresh(parts + (long long)(part)*c + j);
        (shares ? scene.total : scene.sums)[j] = total;
    }
    if (shares) {
        team.barrier();
        for (int j = thread; j < c; j += kThreads) scene.sums[j] = load_fresh(scene.total + j);
    }
    __syncthreads();
}

// Few classes: a lane has one column, and its sum in a register.
template <typename Rows>
static __device__ void pass_narrow(Scene& scene, const Rows& rows) {
    const BlockTeam& team = *scene.team;
    const int c = scene.c, width = lanes_of_row(c), lane = int(threadIdx.x) % width, step = kThreads / width;
    const long long n = scene.problem->n, end = team.end(n);
    double sum = 0.0;
    for (long long first = team.start(n); first < end; first += step) {
        const long long i = first + int(threadIdx.x) / width;
        sum += rows(i, lane, width, i < end ? c : 0);
    }
    for (int apart = width; apart < KPL_WARP; apart *= 2) sum += __shfl_xor_sync(KPL_FULL_MASK, sum, apart);
    scene.lanes[threadIdx.x] = sum;
    __syncthreads();
    if (int(threadIdx.x) < c) {
        double total = scene.lanes[threadIdx.x];
        for (int warp = 1; warp < kWarps; ++warp) total += scene.lanes[warp * KPL_WARP + threadIdx.x];
        scene.growing[threadIdx.x] = total;
    }
}

// Many classes: a warp a row, and after each 8 rows a thread a column, from what was written.
template <typename Rows>
static __device__ void pass_wide(Scene& scene, const Rows& rows) {
    const BlockTeam& team = *scene.team;
    const int c = scene.c, thread = int(threadIdx.x);
    const long long n = scene.problem->n, end = team.end(n);
    for (int j = thread; j < c; j += kThreads) scene.growing[j] = 0.0;
    for (long long first = team.start(n); first < end; first += kWarps) {
        const long long i = first + thread / KPL_WARP, stop = first + kWarps < end ? first + kWarps : end;
        rows(i, thread % KPL_WARP, KPL_WARP, i < end ? c : 0);
        __syncthreads();
        for (int j = thread; j < c; j += kThreads) {
            double sum = scene.growing[j];
            for (long long row = first; row < stop; ++row) sum += rows.added(scene.problem->P[row * c + j]);
            scene.growing[j] = sum;
        }
    }
}

// Rewrites all rows; new column sums to `sums`. Also a barrier of the team.
template <typename Rows>
static __device__ void pass(Scene& scene, const Rows& rows) {
    if (scene.c <= KPL_WARP)
        pass_narrow(scene, rows);
    else
        pass_wide(scene, rows);
    meet_columns(scene);
}

// P <- softmax(S / tau_t) / shares, or the logarithm of the softmax. The maximum is subtracted before the division, so
// no finite S overflows; -inf comes of a temperature below 1e-308 alone.
struct SoftmaxRows {
    const double* S;
    double* P;
    double tau_t, shares;
    bool logs;

    __device__ double exponent(double s, double peak) const { return (s - peak) / tau_t; }
    __device__ double added(double p) const { return logs ? exp(p) : p; }

    __device__ double operator()(long long i, int lane, int width, int c) const {
        const double* s = S + i * c;
        double peak = minus_infinity(), total = 0.0, last = 0.0;
        for (int j = lane; j < c; j += width) peak = larger(s[j], peak);
        peak = max_lanes(peak, width);
        for (int j = lane; j < c; j += width) total += exp(exponent(s[j], peak));
        total = sum_lanes(total, width);
        const double shift = logs ? log(total) : 0.0;
        for (int j = lane; j < c; j += width) {
            const double e = exponent(s[j], peak), p = logs ? e - shift : exp(e) / total / shares;
            P[i * c + j] = p;
            last = added(p);
        }
        return last;
    }
};

// Columns from `sums` to `wanted`, then the row to `mass`. Divided first: wanted / sum alone overflows when a column
// holds denormal numbers only.
struct SweepRows {
    double* P;
    const double *sums, *wanted;
    double mass;

    __device__ double added(double p) const { return p; }

    __device__ double scaled(double p, int j) const {
        const double sum = sums[j];
        return p / (sum > 0.0 ? sum : 1.0) * wanted[j];
    }

    __device__ double operator()(long long i, int lane, int width, int c) const {
        double* p = P + i * c;
        double total = 0.0, last = 0.0;
        for (int j = lane; j < c; j += width) total += scaled(p[j], j);
        total = sum_lanes(total, width);
        if (!(total > 0.0)) total = 1.0;
        for (int j = lane; j < c; j += width) p[j] = last = scaled(p[j], j) / total * mass;
        return last;
    }
};

// What the entries become at the end: kept, times n, exp(logs + potentials), or columns to their targets.
struct KeepEntries {
    const double* P;
    double scale;

    __device__ double operator()(long long i, int j, int c) const { return P[i * c + j] * scale; }
};

struct PlanEntries {
    const double *P, *rows, *columns;

    __device__ double operator()(long long i, int j, int c) const { return exp(P[i * c + j] + rows[i] + columns[j]); }
};

struct StreamEntries {
    const double *P, *sums, *targets;

    __device__ double operator()(long long i, int j, int c) const {
        return P[i * c + j] / (sums[j] > 0.0 ? sums[j] : 1.0) * targets[j];
    }
};

// Final labels: rows left without mass get `filling` (all of it lay in forbidden classes; null: they stay empty), rows
// whose maximum is above alpha become one-hot at their first maximum. Adds up what was written.
template <typename Entries>
static __device__ void finish(Scene& scene, const Entries& entries, const double* filling, double alpha) {
    const Problem& problem = *scene.problem;
    const BlockTeam& team = *scene.team;
    const int width = lanes_of_row(scene.c), lane = int(threadIdx.x) % width, step = kThreads / width;
    const long long end = team.end(problem.n);
    double mass = 0.0, hardened = 0.0;
    for (long long first = team.start(problem.n); first < end; first += step) {
        const long long i = first + int(threadIdx.x) / width;
        const int c = i < end ? scene.c : 0;
        Place best = {minus_infinity(), lane};
        double total = 0.0;
        for (int j = lane; j < c; j += width) {
            const double p = entries(i, j, c);
            if (p > best.size) best = {p, j};
            total += p;
        }
        total = sum_lanes(total, width);
        const bool empty = filling && total == 0.0;
        if (empty)
            for (int j = lane; j < c; j += width)
                if (j == lane || filling[j] > best.size) best = {filling[j], j};
        best = first_lanes(best, width);
        const bool sharp = best.size > alpha;
        for (int j = lane; j < c; j += width) {
            const double p = sharp ? double(j == best.index) : empty ? filling[j] : entries(i, j, c);
            problem.P[i * c + j] = p;
            mass += p;
        }
        hardened += lane == 0 && sharp;
    }
    mass = scene.block->sum(mass);
    hardened = scene.block->sum(hardened);
    if (team.size > 1) {
        if (threadIdx.x == 0) {
            scene.masses[2 * team.rank] = mass;
            scene.masses[2 * team.rank + 1] = hardened;
        }
        team.barrier();
        if (team.rank > 0) return;
        const int part = int(threadIdx.x);
        mass = scene.block->sum(part < team.size ? load_fresh(scene.masses + 2 * part) : 0.0);
        hardened = scene.block->sum(part < team.size ? load_fresh(scene.masses + 2 * part + 1) : 0.0);
    }
    if (threadIdx.x > 0) return;
    problem.record->mass = mass;
    problem.record->num_hardened = (long long)(hardened);
}

}  // namespace labels
}  // namespace kpl
