// From vision proxies to an answer (kpl_engine/solver/finishing.py; docs/method.md 3b).
//
//   V = W - mean_j W;  D = V n / mass;  scores = X D;  logits = X W;  label = argmax scores
//   probabilities = softmax(scores in float32 / tau)
//   undecided: margin <= eps ‖x‖ ‖D_a - D_b‖ + noise ‖x‖, what rounding of a feature and of W can move
//
// X (n, d) float32; W (c, d) and all sums float64; results float32. Reads 4 n d + 16 c d bytes, writes 12 n c, 2 n d (c +
// 1) flops in float64. On an H200 one block is bound by conversions of X from float32 (16 a clock) and by latency, many
// by float64 products. Predicted: 9 us for (64, 768, 5): 5 for the products, 1 for the columns, 1 for the rows.
#include "device/block_team.cuh"
#include "device/problem.cuh"
#include "device/project.cuh"
#include "device/reduce.cuh"

namespace kpl {
namespace answers {

using tiles::kThreads;
using tiles::kWarps;

constexpr double kEpsilon = 1.0 / (1 << 23);  // of float32
constexpr double kNoise = 1e-12;              // what the columns of W, of length 1, are computed to; as in finishing.py
constexpr double kLeastMass = 1e-6;           // below it the class differences of W are rounding

// Parts of the workspace, in doubles; `answer_workspace` in ops/answer.py adds them up.
struct Work {
    double *mean, *lengths, *squares, *Z, *misfits;  // (d), (c), (n), (n, c + 1), (team)
};

static __device__ __forceinline__ Work work_of(const Problem& problem) {
    double *mean = problem.workspace, *lengths = mean + problem.d, *squares = lengths + problem.c;
    double *Z = squares + problem.n;
    return {mean, lengths, squares, Z, Z + problem.n * (problem.c + 1)};
}

// Stores in float32; whether that was finite.
static __device__ __forceinline__ bool narrow(double value, float* to) {
    *to = float(value);
    return isfinite(*to);
}

// Columns of V, then the mean that they lack.
struct CenteredColumns {
    const double *W, *mean;
    int d, c;

    __device__ double load(int k, int j) const {
        const double shift = load_fresh(mean + k);
        return j < c ? W[(long long)(j)*d + k] - shift : shift;
    }
};

struct Products {
    double *Z, *squares;
    int width;

    __device__ void entry(long long i, int j, double z) const { Z[i * width + j] = z; }
    __device__ void square(long long i, double square) const { squares[i] = square; }
};

static __device__ void mean_column(const Problem& problem, const BlockTeam& team, const Work& work) {
    const int c = int(problem.c), d = int(problem.d);
    for (int k = int(team.start(d)) + int(threadIdx.x); k < int(team.end(d)); k += kThreads) {
        double total = 0.0;
#pragma unroll 8
        for (int j = 0; j < c; ++j) total += problem.W[(long long)(j)*d + k];
        work.mean[k] = total / double(c);
    }
}

// Proxies and discriminants in float32, and the lengths of V; a warp a class. Whether all is finite.
static __device__ bool write_columns(const Problem& problem, const BlockTeam& team, const Work& work, double scale) {
    const int c = int(problem.c), d = int(problem.d), lane = int(threadIdx.x) % KPL_WARP;
    bool fits = true;
    for (int j = int(team.start(c)) + int(threadIdx.x) / KPL_WARP; j < int(team.end(c)); j += kWarps) {
        double square = 0.0;
        for (int k = lane; k < d; k += KPL_WARP) {
            const long long at = (long long)(j)*d + k;
            const double w = problem.W[at], v = w - load_fresh(work.mean + k);
            fits &= narrow(w, problem.out_proxies + at);
            fits &= narrow(v * scale, problem.out_discriminants + at);
            square = fma(v, v, square);
        }
        square = sum_lanes(square);
        if (lane == 0) work.lengths[j] = sqrt(square);
    }
    return fits;
}

struct TopTwo {
    Place best, second;
};

static __device__ __forceinline__ TopTwo top_two(const double* z, int c, int lane, int width) {
    const Place none = {minus_infinity(), 0x7fffffffffffffffLL};
    TopTwo top = {none, none};
    for (int j = lane; j < c; j += width) {
        const Place here = {z[j], j};
        if (before(here, top.best))
            top = {here, top.best};
        else if (before(here, top.second))
            top.second = here;
    }
    const Place best = first_lanes(top.best, width);
    // A lane whose best has won offers its second.
    return {best, first_lanes(best.index == top.best.index ? top.second : top.best, width)};
}

// ‖V_a - V_b‖ by the whole warp.
static __device__ double distance(const Problem& problem, const double* mean, long long a, long long b) {
    const int d = int(problem.d);
    double square = 0.0;
    for (int k = int(threadIdx.x) % KPL_WARP; k < d; k += KPL_WARP) {
        const double shift = load_fresh(mean + k);
        const double apart = (problem.W[a * d + k] - shift) - (problem.W[b * d + k] - shift);
        square = fma(apart, apart, square);
    }
    return sqrt(sum_lanes(square));
}

// One row by `width` lanes: logits, scores, probabilities. Whether all is finite.
static __device__ bool write_row(const Problem& problem, const double* z, long long i, int c, double scale, double tau,
                                 double best, int lane, int width) {
    const double peak = double(float(best * scale));
    bool fits = true;
    double total = 0.0;
    for (int j = lane; j < c; j += width) {
        const long long at = i * c + j;
        fits &= narrow(z[c] + z[j], problem.out_logits + at);
        fits &= narrow(z[j] * scale, problem.out_scores + at);
        const double score = double(problem.out_scores[at]);
        total += score == peak ? 1.0 : exp((score - peak) / tau);
    }
    total = sum_lanes(total, width);
    for (int j = lane; j < c; j += width) {
        const double score = double(problem.out_scores[i * c + j]);
        problem.out_probabilities[i * c + j] = float((score == peak ? 1.0 : exp((score - peak) / tau)) / total);
    }
    return fits;
}

// Which rows rounding decides: nearly always ‖V_a‖ + ‖V_b‖ already says no, else the warp measures ‖V_a - V_b‖.
static __device__ void mark_undecided(const Problem& problem, const Work& work, const TopTwo& top, long long i,
                                      int width, bool leads) {
    bool near = false;
    double margin = 0.0, reach = 0.0, floor = 0.0;
    if (leads && problem.c > 1) {
        const double length = sqrt(load_fresh(work.squares + i)), *lengths = work.lengths;
        margin = top.best.size - top.second.size, reach = kEpsilon * length, floor = kNoise * length;
        near = !(margin > reach * (load_fresh(lengths + top.best.index) + load_fresh(lengths + top.second.index)) + floor);
        problem.out_undecided[i] = near;
    } else if (leads) {
        problem.out_undecided[i] = 0;
    }
    for (unsigned rows = __ballot_sync(KPL_FULL_MASK, near); rows; rows &= rows - 1) {
        const int owner = __ffs(int(rows)) - 1;
        const double apart = distance(problem, work.mean, __shfl_sync(KPL_FULL_MASK, top.best.index, owner),
                                      __shfl_sync(KPL_FULL_MASK, top.second.index, owner));
        if (int(threadIdx.x) % KPL_WARP == owner) problem.out_undecided[i] = margin <= reach * apart + floor;
    }
}

// Whether all rows of this block are finite in float32.
static __device__ bool write_rows(const Problem& problem, const BlockTeam& team, const Work& work, double scale,
                                  double tau) {
    const int classes = int(problem.c);
    int width = 1;
    while (width < classes && width < KPL_WARP) width *= 2;
    const int lane = int(threadIdx.x) % width;
    const long long end = team.end(problem.n);
    bool fits = true;
    for (long long first = team.start(problem.n); first < end; first += kThreads / width) {
        const long long i = first + int(threadIdx.x) / width;
        const int c = i < end ? classes : 0;
        const double* z = work.Z + i * (classes + 1);
        const TopTwo top = top_two(z, c, lane, width);
        fits &= write_row(problem, z, i, c, scale, tau, top.best.size, lane, width);
        const bool leads = c > 0 && lane == 0;
        if (leads) problem.out_labels[i] = top.best.index < classes ? top.best.index : 0;
        mark_undecided(problem, work, top, i, width, leads);
    }
    return fits;
}

// The number of misfits of all blocks, in the first.
static __device__ void record_fits(const Problem& problem, const BlockTeam& team, const Work& work, bool fits,
                                   BlockReduce& block) {
    double misfits = block.sum(fits ? 0.0 : 1.0);
    if (team.size > 1) {
        if (threadIdx.x == 0) work.misfits[team.rank] = misfits;
        team.barrier();
        if (team.rank > 0) return;
        misfits = block.sum(int(threadIdx.x) < team.size ? load_fresh(work.misfits + threadIdx.x) : 0.0);
    }
    if (threadIdx.x == 0) problem.record->fits = misfits == 0.0;
}

static __device__ void finish(const Problem& problem, const BlockTeam& team, double tau) {
    unsigned char* shared = dynamic_shared();
    BlockReduce block(shared);
    const Work work = work_of(problem);
    const int c = int(problem.c), d = int(problem.d);
    const double mass = problem.record->mass, scale = mass > kLeastMass ? double(problem.n) / mass : 1.0;
    mean_column(problem, team, work);
    team.barrier();
    bool fits = write_columns(problem, team, work, scale);
    tiles::project({problem.X, problem.n, d, reinterpret_cast<double*>(shared + BlockReduce::kBytes)},
                   CenteredColumns{problem.W, work.mean, d, c}, c + 1, team, Products{work.Z, work.squares, c + 1});
    team.barrier();
    fits &= write_rows(problem, team, work, scale, tau);
    record_fits(problem, team, work, fits, block);
}

static __device__ __forceinline__ long long units(const Problem& problem) {
    return product_work(problem.n, problem.d, problem.c + 1);
}

}  // namespace answers
}  // namespace kpl

extern "C" __global__ void __launch_bounds__(kpl::tiles::kThreads, 1)
answer(const kpl::Problem* problems, int num_problems, int launched, unsigned* counters, double tau) {
    using namespace kpl;
    each_problem(problems, num_problems, launched, counters, answers::units,
                 [&](const Problem& problem, const BlockTeam& team) { answers::finish(problem, team, tau); });
}
KPL_EXPORT_KERNEL(answer);
