// The published schedule in feature space for many classes on tensor cores, all steps of all problems in one
// cooperative launch, for labels of mass n (softmax, Sinkhorn):
//
//   W <- unit columns of W - lr/(n tau_i) Xᵀ(softmax(X W / tau_i) - P),  lr halved whenever ‖Xᵀ(..)‖_F grew
//
// X (n, d) float32 unit rows, P (n, c) float64 in; W (c, d) float64 out; the record of the run. Both products are made
// of float16 halves, three products for one: 22 bits, float32 sums. W, norms and the step are float64. The twin is
// kpl_engine/solver/schedule.py: run_primal; docs/method.md 3b says what error is allowed. sm_80 and later.
//
// A step: 12 n d c flops of float16, 2 n c exponentials; 28 n c bytes of Z, P and R, 8 n d of X (or as often as tiles
// of 128 fall out of L2), 16 splits c d of parts; five barriers.
//
// H200, (50000, 768, 1000): 4.6e11 flops a step, 0.47 ms at the 990 TFLOP/s of wgmma, 0.78 ms at the 60 % of it that
// mma.sync reaches, predicted 1.1 ms at 70 % of that; 1.4 GB of Z, P and R in 0.35 ms. Predicted 1.5 ms a step, 3 s for
// 2000 steps, bound by the products. Not yet measured.
#include "device/split.cuh"

namespace {

__device__ __forceinline__ void solve_split(const kpl::Problem& problem, unsigned* counter, int splits, double lr,
                                            double tau_i, double movement, long long iters) {
    using namespace kpl;
    const long long n = problem.n, c = problem.c, d = problem.d, ld = round_up(c, 4);
    float* Z = reinterpret_cast<float*>(problem.workspace);
    Half* halves = reinterpret_cast<Half*>(Z + n * ld);
    const SplitArray rows = take_array(halves, n, d), columns = take_array(halves, d, n);
    const SplitArray proxies = take_array(halves, c, d), residuals = take_array(halves, c, n);
    const WideTeam wide = open_team(problem, counter, splits, nullptr, reinterpret_cast<double*>(halves));
    const SplitTeam team = {wide, rows, columns, proxies, residuals, Z, ld};
    split_rows(team);
    start_wide(wide, lr, tau_i, movement);
    split_proxies(team);
    grid_barrier(counter, gridDim.x);
    bool is_settled = false;
    while (wide_shared().done < iters) {
        make_split_logits(team);
        grid_barrier(counter, gridDim.x);
        make_split_residuals(team, 1.0 / tau_i);
        grid_barrier(counter, gridDim.x);
        make_split_parts(team);
        grid_barrier(counter, gridDim.x);
        if (take_wide_step(wide, iters, is_settled, [&] { split_proxies(team); })) break;
    }
    end_wide(wide, is_settled);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(256, 1)
    learn_proxies_split(const kpl::Problem* problems, int num_problems, unsigned* counter, int splits, double lr,
                        double tau_i, double movement, long long iters, int only_if_fault) {
    for (int i = 0; i < num_problems; ++i)
        if (!kpl::is_answered(problems[i], only_if_fault))
            solve_split(problems[i], counter, splits, lr, tau_i, movement, iters);
}
KPL_EXPORT_KERNEL(learn_proxies_split);
