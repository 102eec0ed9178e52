// What the parts of the CPU core know of each other: plain records and function tables, no code.
//
// Letters as in docs/method.md: X (n, d) features, T and W (d, c) proxies, P (n, c) labels, Z = X W, K = X Xᵀ,
// R = softmax(Z / tau_i) - P, H = K R. Inside the core everything is float64 and stored class by class: Z, R, H, P,
// A are (c, ld) with ld >= n a multiple of the vector width and zeros in the padding, W is (c, ldw), ldw >= d.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace kpl {

class Barrier;
void wait(Barrier& barrier);

// A run of steps that one member takes alone, or all take together. See pace.h.
struct Burst {
    int active;       // members that take part: 1, all of them, or 0 when the run is over
    int64_t steps;    // at most
    double patience;  // seconds a step may take before the burst is given up; 0: for ever
    unsigned number;  // of bursts taken together
};
class Pace;
Burst next_burst(Pace& pace, int64_t steps, bool given_up);  // the first member's; active 0 to give up the run
Burst await_burst(Pace& pace, unsigned seen);                // the others'
void end_bursts(Pace& pace);
double now();  // seconds of a clock that only goes forward

// One of `count` threads that work on one problem together.
struct Member {
    int index;
    int count;
    Barrier* barrier;  // null when count is 1
};

// A matrix of float32 or float64 with any strides (in elements, may be negative or zero), read only.
struct Matrix {
    const void* data;
    ptrdiff_t row_stride;
    ptrdiff_t column_stride;
    bool is_float32;
};

// The step size lr / (n tau_i) and its rule: lr halves whenever the gradient norm grew.
struct StepSize {
    double lr;
    double scale;  // 1 / (n tau_i)
    double norm;   // infinity before the first step
    double last_change;
    int64_t halvings;
    double slack;  // how far the gradient norm can grow while W moves by no more than `movement`
};

struct ScheduleOptions {
    double lr;
    double tau_i;
    int64_t iters;
    double max_drift;  // ulps of column length that the dual form lets pass before it starts afresh from W
    bool early_exit;   // false runs every step: for the tests of the exact early exit, and for timings
    double movement;   // stop when all steps left cannot move a column of W by more than this; 0: never
};

struct ScheduleResult {
    int64_t iterations;
    int64_t halvings;
    double norm;
    double last_change;
    bool settled;  // left by the exact early exit
    bool frozen;   // left because the steps still to come are proven not to move W by more than `movement`
};

// One problem in the dual form with the storage it works in. All members share it.
struct DualTask {
    size_t n, d, c, ld, ldw, panels;
    Pace* pace;
    void* lead;  // the first member's loop, for the others to go on from
    Matrix X;
    ScheduleOptions options;
    double longest;    // max ‖x_i‖
    bool shift;        // logits may leave the range of exp: subtract the maximum of each row
    double* features;  // (n, ldw) X in float64, rows padded with zeros
    double* pack;      // (members, kDepth * panel) one panel of Xᵀ
    double* K;         // panels of (n, panel), see product.h
    double* P;         // (c, ld) hardened labels
    double *Z, *A, *R, *H;
    double* rest;      // (ld) K (1 - Σ_j P_j): what the columns of H add up to
    double* W;         // (c, ldw) start on entry, result on return
    double* partial;   // (panels, 3c)
    double* G;         // (c, ldw) gradient, where its norm is computed from it
    double* scalars;   // (members, 4c)
    int64_t* changed;  // (members, 8) one cache line each
    ScheduleResult result;
};

// One problem in the primal form. Rows are taken in blocks that stay in cache between their two products.
struct PrimalTask {
    size_t n, d, c, ldw, block;
    int slices;  // parts the rows are taken in, as many as members; how many threads take them changes no bit
    Pace* pace;
    void* lead;
    Matrix X;
    ScheduleOptions options;
    double longest;
    bool shift;
    size_t ldp;
    const double* P;   // (c, ldp) hardened labels, zeros from n to the end of the last block
    double *W, *next;  // (c, ldw)
    double* rest;      // (ldw) Xᵀ(1 - Σ_j P_j): what the columns of G add up to
    double* G;         // (members, c, ldw) gradient of each member's rows
    double* work;      // (members, work_size): differences of W, block of residuals, block of X
    size_t work_size;
    double* Z;         // (n, c) X W on return
    double* norms;     // (members, c + 8)
    int64_t* changed;  // (members, 8)
    ScheduleResult result;
};

enum class LabelMethod { softmax, sinkhorn, stable_greenkhorn, stream };
constexpr int64_t kConverged = -1;  // as `iters`: the transport plan that sinkhorn and stable_greenkhorn tend to

// Similarities to pseudo labels, see labels.h.
struct LabelTask {
    size_t n, c, ld;
    LabelMethod method;
    double tau_t;
    double gamma;
    int64_t iters;
    const double* prior;  // (c) shares that sum to 1, or null
    const double* S;      // (c, ld), anything but NaN; the padding is not read into any result
    double* P;            // (c, ld) labels on return, zeros in the padding; may be S itself
    double* work;         // (label_work(c, ld)), see refine.h
};

struct LinearKernels;  // linear_kernels.h

// The functions compiled for one instruction set.
struct Kernels {
    const char* name;
    size_t lanes, panel, depth;
    void (*exp)(const double* in, double* out, size_t count, bool gradual);
    void (*run_dual)(DualTask& task, const Member& member);
    void (*run_primal)(PrimalTask& task, const Member& member);
    double (*longest_row)(const Matrix& X, size_t n, size_t d);
    // S (c, ld) = similarities X W of the features and proxies of the task, class by class, on one thread.
    void (*similarities)(const PrimalTask& task, double* S, size_t ld);
    void (*refine)(const LabelTask& task);
    // P (c, ld): rows whose maximum is above alpha become one-hot at their first maximum. Returns how many.
    size_t (*harden)(double* P, size_t n, size_t c, size_t ld, double alpha);
    // Text proxies, see text_proxy.h. Arrays over d are written in whole vectors.
    bool (*sum_rows)(const float* rows, ptrdiff_t stride, size_t count, size_t d, double longest, double* sums);
    void (*score_rows)(const float* E, size_t count, size_t d, const double* mean, double* scores);
    void (*unit_mean)(const float* E, size_t d, const int64_t* best, size_t k, double* out);
    const LinearKernels* linear;
    // Measured ceilings, see limits.h.
    double (*multiply_add_rate)(double (*now)(), int64_t rounds);
    double (*exp_rate)(double (*now)(), int64_t rounds, double* data, size_t size);
    double (*read_rate)(double (*now)(), int64_t rounds, const double* data, size_t size);
};

// The set in use, the best one that this processor has unless `use_kernels` named another.
const Kernels& kernels();
// Names of the sets that this processor can run, best last; ends with a null pointer.
const char* const* kernel_names();
bool use_kernels(const char* name);

}  // namespace kpl
