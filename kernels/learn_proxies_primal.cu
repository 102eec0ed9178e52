// The published schedule in feature space for few classes, all steps of all problems in one cooperative launch:
//
//   W <- unit columns of W - lr/(n tau_i) Xᵀ(softmax(X W / tau_i) - P),  lr halved whenever ‖Xᵀ(..)‖_F grew
//
// X (n, d) float32, P (n, c) float64 in; W (c, d) float64 out; the record of the run. All arithmetic is float64. The
// twin is kpl_engine/solver/schedule.py: run_primal; the rules of the steps are in device/steps.cuh.
//
// Kernels learn_proxies_primal_C take c-1 <= C columns, d <= 1024. Problems one after another, all blocks on each. The
// counter of the barriers is zeroed before the launch. Same grid, same bits.
//
// A step: 4 n d (c-1) flops in float64, n d conversions from float32, reads of 4 n d bytes of X (less what is resident)
// and 8 n (c-1) of P, two grid barriers, 8 (c-1) d bytes a block of partial sums through L2.
//
// H200, (27558, 768, 2), two blocks an SM: X is 85 MB; 209 rows an SM. A step is at least 17.7 us of HBM if nothing is
// reused, about 10 us with 13 MB resident and 25 MB found in L2 by going back and forth; conversions 10,000 clocks
// (16 a clock an SM) = 5.7 us, multiply-adds 5,000, beside the reads; barriers, partial sums and the step itself about
// 5 us. Predicted 17 to 24 us a step, 35 to 48 ms for 2000 steps, bound by HBM and latency. Not yet measured.
#include "device/primal.cuh"

namespace {

template <int COLUMNS, int ROWS>
__device__ __forceinline__ void solve(const kpl::Problem* problems, int num_problems, unsigned* counter,
                                      int max_resident, double lr, double tau_i, double movement, long long iters,
                                      int only_if_fault) {
    for (int i = 0; i < num_problems; ++i)
        if (!kpl::is_answered(problems[i], only_if_fault))
            kpl::run_primal<COLUMNS, ROWS>(problems[i], counter, max_resident, {lr, tau_i, movement, iters});
}

}  // namespace

#define KPL_PRIMAL(columns, rows)                                                                                    \
    extern "C" __global__ void __launch_bounds__(256, 1)                                                             \
        learn_proxies_primal_##columns(const kpl::Problem* problems, int num_problems, unsigned* counter,            \
                                       int max_resident, double lr, double tau_i, double movement, long long iters,  \
                                       int only_if_fault) {                                                          \
        solve<columns, rows>(problems, num_problems, counter, max_resident, lr, tau_i, movement, iters,              \
                             only_if_fault);                                                                         \
    }                                                                                                                \
    KPL_EXPORT_KERNEL(learn_proxies_primal_##columns)

KPL_PRIMAL(1, 8);
KPL_PRIMAL(2, 8);
KPL_PRIMAL(4, 4);
KPL_PRIMAL(8, 4);
