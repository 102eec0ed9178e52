// The published schedule in feature space for many classes, all steps of all problems in one cooperative launch:
//
//   W <- unit columns of W - lr/(n tau_i) Xᵀ(softmax(X W / tau_i) - P),  lr halved whenever ‖Xᵀ(..)‖_F grew
//
// X (n, d) float32, P (n, c) float64 in; W (c, d) float64 out; the record of the run. All arithmetic is float64. The
// twin is kpl_engine/solver/schedule.py: run_primal. Any n, d, c; the counter of the barriers is zeroed before.
//
// A step: 4 n d c flops in float64, n c exponentials; it reads X twice (8 n d bytes, or as often as tiles of 64 columns
// fall out of L2), writes and reads Z twice and P once (40 n c bytes), 16 splits c d bytes of parts; five barriers.
//
// H200, (50000, 768, 1000): 1.54e11 flops a step, 2.3 ms at the 67 TFLOP/s of its float64 tensor cores, 4.6 s for 2000
// steps at best; predicted at 70 % of that peak, with 0.5 ms for Z and P and the exponentials: 3.8 ms a step, 7.6 s,
// bound by the products. Not yet measured.
#include "device/wide.cuh"

namespace {

__device__ __forceinline__ void solve_wide(const kpl::Problem& problem, unsigned* counter, int splits, double lr,
                                           double tau_i, double movement, long long iters) {
    using namespace kpl;
    double* parts = problem.workspace + problem.n * problem.c;
    const WideTeam team = open_team(problem, counter, splits, problem.workspace, parts);
    start_wide(team, lr, tau_i, movement);
    bool is_settled = false;
    while (wide_shared().done < iters) {
        make_logits(team);
        grid_barrier(counter, gridDim.x);
        make_residuals(team, 1.0 / tau_i);
        grid_barrier(counter, gridDim.x);
        make_parts(team);
        grid_barrier(counter, gridDim.x);
        if (take_wide_step(team, iters, is_settled, [] {})) break;
    }
    end_wide(team, is_settled);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(256, 1)
    learn_proxies_wide(const kpl::Problem* problems, int num_problems, unsigned* counter, int splits, double lr,
                       double tau_i, double movement, long long iters, int only_if_fault) {
    for (int i = 0; i < num_problems; ++i)
        if (!kpl::is_answered(problems[i], only_if_fault))
            solve_wide(problems[i], counter, splits, lr, tau_i, movement, iters);
}
KPL_EXPORT_KERNEL(learn_proxies_wide);
