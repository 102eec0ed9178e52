// Text Proxy Optimization (docs/method.md 1): T_j = unit(mean of the k descriptions of class j that fit the images).
//
//   mean (d) = Σ_i x_i / n;  score_e = <e, mean>;  kept_j = the k best of class j;  T_j = unit(Σ kept / k)
//
// X (n, d), E (M, d) float32; scores and all sums float64; T (c, d) float32. Reads 4 d (n + M + c k) bytes once,
// 2 d (n + M + c k) flops in float64 and as many conversions from float32. On an H200 the conversions (16 a clock and
// multiprocessor) bind one block, memory bandwidth binds many. Predicted: 8 us for (64, 768, c = 5, M = 100) in one
// block: 2 us to read, 4.4 us of conversions, four phases of latency; (50000, 768, 2, 100) on 128 blocks 60 us.
//
// Descriptions are ranked by counting: one thread counts how many of its class come before its own, and stops at k.
// No search waits for another, and the expected work is k M log(M / k) comparisons.
#include "device/problem.cuh"
#include "device/reduce.cuh"
#include "device/block_team.cuh"

namespace kpl {
namespace text {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / KPL_WARP;
constexpr int kStaged = 6144;           // doubles of shared memory for sums of groups of rows
constexpr int kGroups = 8;              // of rows, at most; each column is summed by so many warps at once
constexpr double kCancelled = 1e-6;     // unit float32 rows that cancel leave a residue of about 1e-7, not a direction

typedef unsigned long long Key;

// Grows with the score, as an integer: comparing integers costs the same on every GPU.
static __device__ __forceinline__ Key key_of(double score) {
    const Key bits = Key(__double_as_longlong(score + 0.0));  // -0 becomes 0, as they are equal
    return bits >> 63 ? ~bits : bits | Key(1) << 63;
}

// Parts of the workspace, in doubles; workspace_doubles in ops/text_proxy.py adds them up.
struct Work {
    double *parts, *mean;  // (team, d), (d)
    Key* keys;             // (M)
    double* sums;          // (c, d)
};

static __device__ __forceinline__ Work work_of(const Problem& problem, int team) {
    double* at = problem.workspace;
    const long long d = problem.d;
    return {at, at + team * d, reinterpret_cast<Key*>(at + (team + 1) * d), at + (team + 1) * d + problem.M};
}

// The share of this block in Σ_i x_i, in shared memory: groups of rows in their order.
static __device__ void sum_rows(const Problem& problem, const BlockTeam& team, double* sums) {
    const int d = int(problem.d), lane = int(threadIdx.x) % KPL_WARP, warp = int(threadIdx.x) / KPL_WARP;
    const int fitting = kStaged / d, groups = fitting > kGroups ? kGroups : fitting > 1 ? fitting : 1;
    const int tiles = (d + KPL_WARP - 1) / KPL_WARP;
    const long long from = team.start(problem.n), count = team.end(problem.n) - from;
    for (int item = warp; item < tiles * groups; item += kWarps) {
        const int group = item / tiles, k = item % tiles * KPL_WARP + lane;
        if (k >= d) continue;
        const long long end = from + count * (group + 1) / groups;
        double total = 0.0;
#pragma unroll 16
        for (long long i = from + count * group / groups; i < end; ++i) total += double(problem.X[i * d + k]);
        sums[group * d + k] = total;
    }
    __syncthreads();
    for (int k = int(threadIdx.x); k < d; k += kThreads) {
        double total = sums[k];
        for (int group = 1; group < groups; ++group) total += sums[group * d + k];
        sums[k] = total;
    }
}

// mean (d) in the shared memory of every block. Several blocks add their parts column by column, a warp each.
static __device__ void mean_image(const Problem& problem, const BlockTeam& team, const Work& work, double* mean) {
    const int d = int(problem.d), lane = int(threadIdx.x) % KPL_WARP, warp = int(threadIdx.x) / KPL_WARP;
    const double n = double(problem.n);
    sum_rows(problem, team, mean);
    if (team.size == 1) {
        for (int k = int(threadIdx.x); k < d; k += kThreads) mean[k] /= n;
        __syncthreads();
        return;
    }
    for (int k = int(threadIdx.x); k < d; k += kThreads) work.parts[(long long)(team.rank) * d + k] = mean[k];
    team.barrier();
    for (int k = int(team.start(d)) + warp; k < int(team.end(d)); k += kWarps) {
        double total = 0.0;
        for (int part = lane; part < team.size; part += KPL_WARP)
            total += load_fresh(work.parts + (long long)(part) * d + k);
        total = sum_lanes(total);
        if (lane == 0) work.mean[k] = total / n;
    }
    team.barrier();
    for (int k = int(threadIdx.x); k < d; k += kThreads) mean[k] = load_fresh(work.mean + k);
    __syncthreads();
}

// One warp a description, the same lanes and order for each: equal descriptions score the same to the bit.
static __device__ void score_rows(const Problem& problem, const BlockTeam& team, const Work& work, const double* mean) {
    const int d = int(problem.d), lane = int(threadIdx.x) % KPL_WARP, warp = int(threadIdx.x) / KPL_WARP;
    for (long long e = team.start(problem.M) + warp; e < team.end(problem.M); e += kWarps) {
        const float* row = problem.E + e * d;
        double total = 0.0;
#pragma unroll 8
        for (int k = lane; k < d; k += KPL_WARP) total = fma(double(row[k]), mean[k], total);
        total = sum_lanes(total);
        if (lane != 0) continue;
        work.keys[e] = key_of(total);
        problem.scores[e] = float(total);
    }
}

// The class of description e: the last j with first[j] <= e.
static __device__ __forceinline__ int class_of(const int* first, int c, int e) {
    int low = 0, high = c;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (first[middle] <= e)
            low = middle;
        else
            high = middle;
    }
    return low;
}

// How many descriptions of [from, to) come before e, counted to `most` and a few more.
static __device__ __forceinline__ int count_before(const Key* keys, int from, int to, int e, int most) {
    const Key mine = keys[e];
    int count = 0;
    for (int start = from; start < to && count < most; start += 8) {
#pragma unroll
        for (int step = 0; step < 8; ++step) {
            const int other = start + step;
            const Key key = other < to ? keys[other] : 0;  // 0 is below every key
            count += key > mine || (key == mine && other < e);
        }
    }
    return count;
}

static __device__ void keep_best(const Problem& problem, const BlockTeam& team, const Key* keys) {
    const int c = int(problem.c), k = int(problem.k), M = int(problem.M);
    const int stride = team.size * kThreads, thread = team.rank * kThreads + int(threadIdx.x);
    for (int e = thread; e < M; e += stride) {
        const int j = class_of(problem.first, c, e);
        const int place = count_before(keys, problem.first[j], problem.first[j + 1], e, k);
        if (place < k) problem.kept[(long long)(j)*k + place] = e;
    }
    for (long long at = thread; at < (long long)(c)*k; at += stride) {
        const int j = int(at / k);
        if (at % k >= problem.first[j + 1] - problem.first[j]) problem.kept[at] = -1;
    }
}

static __device__ __forceinline__ int num_kept(const Problem& problem, int j) {
    const long long m = problem.first[j + 1] - problem.first[j];
    return int(m < problem.k ? m : problem.k);
}

// Means of the kept descriptions, summed best first, then a warp a class for their lengths.
static __device__ void average(const Problem& problem, const BlockTeam& team, const Work& work) {
    const int d = int(problem.d), lane = int(threadIdx.x) % KPL_WARP, warp = int(threadIdx.x) / KPL_WARP;
    const int from = int(team.start(problem.c)), to = int(team.end(problem.c));
    for (int j = from; j < to; ++j) {
        const int count = num_kept(problem, j);
        const int* kept = problem.kept + j * problem.k;
        for (int k = int(threadIdx.x); k < d; k += kThreads) {
            double total = 0.0;
#pragma unroll 8
            for (int r = 0; r < count; ++r) total += double(problem.E[(long long)(load_fresh(kept + r)) * d + k]);
            work.sums[(long long)(j)*d + k] = total / double(count > 0 ? count : 1);
        }
    }
    __syncthreads();
    for (int j = from + warp; j < to; j += kWarps) {
        const double* mean = work.sums + (long long)(j)*d;
        const int first = num_kept(problem, j) > 0 ? load_fresh(problem.kept + j * problem.k) : 0;
        const float* best = problem.E + (long long)(first)*d;
        double square = 0.0;
        for (int k = lane; k < d; k += KPL_WARP) square = fma(mean[k], mean[k], square);
        double length = sqrt(sum_lanes(square));
        const bool cancelled = !(length > kCancelled) && num_kept(problem, j) > 0;
        if (cancelled) {
            square = 0.0;
            for (int k = lane; k < d; k += KPL_WARP) square = fma(double(best[k]), double(best[k]), square);
            length = sqrt(sum_lanes(square));
        }
        if (!(length > 0.0)) length = 1.0;  // a class of zeros stays zero
        for (int k = lane; k < d; k += KPL_WARP)
            problem.T[(long long)(j)*d + k] = float((cancelled ? double(best[k]) : mean[k]) / length);
    }
}

static __device__ __forceinline__ long long units(const Problem& problem) {
    const long long bytes = 4 * problem.d * (problem.n + problem.M);
    return bytes < 1 << 20 ? 0 : bytes >> 18;
}

}  // namespace text
}  // namespace kpl

extern "C" __global__ void __launch_bounds__(kpl::text::kThreads, 1)
text_proxy(const kpl::Problem* problems, int num_problems, int launched, unsigned* counters) {
    using namespace kpl;
    double* mean = reinterpret_cast<double*>(dynamic_shared());
    const auto solve = [&](const Problem& problem, const BlockTeam& team) {
        const text::Work work = text::work_of(problem, team.size);
        text::mean_image(problem, team, work, mean);
        text::score_rows(problem, team, work, mean);
        team.barrier();
        text::keep_best(problem, team, work.keys);
        team.barrier();
        text::average(problem, team, work);
    };
    each_problem(problems, num_problems, launched, counters, text::units, solve);
}
KPL_EXPORT_KERNEL(text_proxy);
