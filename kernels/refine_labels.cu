// Pseudo labels from similarities (docs/method.md 2, 3), in one persistent launch.
//
//   S = X T (n, c), float64
//   softmax            p = softmax(S / tau_t)
//   sinkhorn           from p / n, `iters` sweeps of columns to q_j and rows to 1/n; times n
//   stable_greenkhorn  `iters` greedy steps towards rows 1/n and columns q_j, in the log domain (device/greedy.cuh)
//   stream             q_j p_ij / Σ_i p_ij
//   iters = kConverged sweeps of columns to n q_j and rows to 1 until every column is at its target
//   q = prior, or ∝ (Σ_i p_ij)^gamma, or 1/c; then rows whose maximum is above alpha become one-hot
//
// S, P (n, c) float64; 4 n d bytes of X once (once a group of 8 columns beyond the L2 cache), 2 n d c flops; then a
// pass over the rows reads 16 n c bytes and writes 8. On an H200 a single block is bound by conversions of X (16 a clock)
// and by latency; (50000, 768, 1000) by float64 products (77 GFLOP, 4 to 5 ms on the plain units) and a sweep by memory
// (16 n c bytes, 0.2 to 0.3 ms). Predicted: (64, 768, 2 to 5) with 20 greedy steps 23 us: 5 for S, 13 for the steps.
// The greedy steps are taken by the first block of a team while the others wait: a step of theirs would meet the team
// twice, 3 us, which is what it costs one block up to about n = 3,500.
#include "device/greedy.cuh"
#include "device/label_rows.cuh"
#include "device/problem.cuh"
#include "device/project.cuh"
#include "device/reduce.cuh"
#include "device/block_team.cuh"

namespace kpl {
namespace labels {

constexpr int kSoftmax = 0, kSinkhorn = 1, kGreenkhorn = 2, kStream = 3;  // as in ops/labels.py
constexpr long long kConverged = -1;
constexpr int kMaxSweeps = 5000;          // tau_t = 0.01 needs tens to hundreds; the cap only bounds infeasible input
constexpr double kPlanTolerance = 1e-10;  // column error of a converged plan as a share of all images

struct Options {
    int method;
    double tau_t, gamma;
    long long iters;
    double alpha;
};

struct TextColumns {
    const float* T;
    int d;

    __device__ double load(int k, int j) const { return double(T[(long long)(j)*d + k]); }
};

struct Similarities {
    double* S;
    int c;

    __device__ void entry(long long i, int j, double z) const { S[i * c + j] = z; }
    __device__ void square(long long, double) const {}
};

// q from the column sums of p or of p / n, the same in every block.
static __device__ void set_targets(const Scene& scene, double gamma, double* targets) {
    const int c = scene.c;
    const double* prior = scene.problem->prior;
    double total = 0.0;
    for (int j = int(threadIdx.x); j < c; j += kThreads) {
        const double power = exp(gamma * log(scene.sums[j]));  // a sum of 0 stays 0: such a class gets nothing
        total += power;
    }
    total = scene.block->sum(total);
    if (scene.team->rank == 0)
        for (int j = int(threadIdx.x); j < c; j += kThreads)
            targets[j] = prior        ? prior[j]
                         : gamma > 0  ? exp(gamma * log(scene.sums[j])) / total
                                      : 1.0 / double(c);
    scene.team->barrier();
}

// What a converged plan wants of each column: an impossible class leaves its share to the others.
static __device__ void set_wanted(const Scene& scene, const double* targets, double* wanted) {
    const double n = double(scene.problem->n);
    double total = 0.0;
    for (int j = int(threadIdx.x); j < scene.c; j += kThreads) total += scene.sums[j] > 0.0 ? targets[j] * n : 0.0;
    total = scene.block->sum(total);
    const double scale = total > 0.0 ? n / total : 1.0;
    if (scene.team->rank == 0)
        for (int j = int(threadIdx.x); j < scene.c; j += kThreads)
            wanted[j] = scene.sums[j] > 0.0 ? targets[j] * n * scale : 0.0;
    scene.team->barrier();
}

static __device__ void converge(Scene& scene, const double* wanted) {
    const double allowed = kPlanTolerance * double(scene.problem->n);
    for (int done = 0; done < kMaxSweeps; ++done) {
        double worst = 0.0;
        for (int j = int(threadIdx.x); j < scene.c; j += kThreads)
            worst = larger(fabs(scene.sums[j] - wanted[j]), worst);
        if (scene.block->max(worst) <= allowed) break;
        pass(scene, SweepRows{scene.problem->P, scene.sums, wanted, 1.0});
    }
}

// The state of the greedy steps: in what is left of shared memory if the block is alone and it fits.
static __device__ greedy::State greedy_state(const Scene& scene, double* global) {
    const long long n = scene.problem->n, c = scene.c;
    double* at = scene.team->size == 1 && 2 * n + 5 * c + kThreads <= tiles::kStaged ? scene.growing + scene.c : global;
    return {scene.problem->P, n, int(c), at, at + n, at + 2 * n, at + 2 * n + c, at + 2 * n + 2 * c};
}

// Doubles of the workspace before the greedy state; `labels_workspace` in ops/labels.py adds them up.
struct Work {
    double *parts, *total, *masses, *targets, *wanted, *greedy;
};

static __device__ __forceinline__ Work work_of(const Problem& problem, int team) {
    const long long c = problem.c, parts = 2 * team * c;
    double* at = problem.workspace;
    return {at, at + parts, at + parts + c, at + parts + c + 2 * team, at + parts + 2 * c + 2 * team,
            at + parts + 3 * c + 2 * team};
}

static __device__ void balance(Scene& scene, const Options& options, const Work& work) {
    const Problem& problem = *scene.problem;
    const double n = double(problem.n), alpha = options.alpha;
    set_targets(scene, options.gamma, work.targets);
    if (options.method == kStream) {
        finish(scene, StreamEntries{problem.P, scene.sums, work.targets}, nullptr, alpha);
    } else if (options.iters == kConverged) {
        set_wanted(scene, work.targets, work.wanted);
        converge(scene, work.wanted);
        finish(scene, KeepEntries{problem.P, 1.0}, work.targets, alpha);
    } else if (options.method == kSinkhorn) {
        for (long long done = 0; done < options.iters; ++done)
            pass(scene, SweepRows{problem.P, scene.sums, work.targets, 1.0 / n});
        finish(scene, KeepEntries{problem.P, n}, work.targets, alpha);
    } else {
        const greedy::State state = greedy_state(scene, work.greedy);
        if (scene.team->rank == 0) greedy::run(state, scene.sums, work.targets, options.iters, *scene.block);
        scene.team->barrier();
        finish(scene, PlanEntries{problem.P, state.rows, state.columns}, nullptr, alpha);
    }
}

static __device__ void refine(const Problem& problem, const BlockTeam& team, const Options& options) {
    unsigned char* shared = dynamic_shared();
    double* staged = reinterpret_cast<double*>(shared + BlockReduce::kBytes);
    tiles::project({problem.X, problem.n, int(problem.d), staged}, TextColumns{problem.T, int(problem.d)},
                   int(problem.c), team, Similarities{problem.S, int(problem.c)});
    team.barrier();
    BlockReduce block(shared);
    const int c = int(problem.c);
    const Work work = work_of(problem, team.size);
    Scene scene = {&problem, &team, &block, c, staged + kThreads, staged + kThreads + c, staged, work.parts,
                   work.total, work.masses, 0};
    const bool sweeps = options.iters == kConverged, greedy = options.method == kGreenkhorn && !sweeps;
    const double shares = options.method == kSinkhorn && !sweeps ? double(problem.n) : 1.0;
    pass(scene, SoftmaxRows{problem.S, problem.P, options.tau_t, shares, greedy});
    if (options.method == kSoftmax)
        finish(scene, KeepEntries{problem.P, 1.0}, nullptr, options.alpha);
    else
        balance(scene, options, work);
}

static __device__ __forceinline__ long long units(const Problem& problem) {
    return product_work(problem.n, problem.d, problem.c);
}

}  // namespace labels
}  // namespace kpl

extern "C" __global__ void __launch_bounds__(kpl::tiles::kThreads, 1)
refine_labels(const kpl::Problem* problems, int num_problems, int launched, unsigned* counters, int method,
              double tau_t, double gamma, long long iters, double alpha) {
    using namespace kpl;
    const labels::Options options = {method, tau_t, gamma, iters, alpha};
    each_problem(problems, num_problems, launched, counters, labels::units,
                 [&](const Problem& problem, const BlockTeam& team) { labels::refine(problem, team, options); });
}
KPL_EXPORT_KERNEL(refine_labels);
