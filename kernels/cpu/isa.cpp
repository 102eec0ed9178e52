// Compiled once for each instruction set, see CMakeLists.txt and simd.h.
#include "core.h"
#include "dual.h"
#include "limits.h"
#include "labels.h"
#include "linear.h"
#include "primal.h"
#include "text_proxy.h"

namespace kpl {
namespace KPL_ISA {
namespace {

void exp_array(const double* in, double* out, size_t count, bool gradual) {
    for (size_t i = 0; i < count; i += kLanes) {
        double part[kLanes] = {};
        const size_t width = count - i < size_t(kLanes) ? count - i : size_t(kLanes);
        for (size_t k = 0; k < width; ++k) part[k] = in[i + k];
        const Vec powers = gradual ? exp<true>(load(part)) : exp<false>(load(part));
        for (size_t k = 0; k < width; ++k) out[i + k] = powers[k];
    }
}

template <typename Number>
double longest_of(const Matrix& X, size_t n, size_t d) {
    const Number* data = static_cast<const Number*>(X.data);
    double longest = 0.0;
    for (size_t i = 0; i < n; ++i) {
        const Number* row = data + ptrdiff_t(i) * X.row_stride;
        double squared = 0.0;
        size_t k = 0;
        if (X.column_stride == 1) {
            Vec total = {};
            for (; k + kLanes <= d; k += kLanes) total += load(row + k) * load(row + k);
            squared = sum(total);
        }
        for (; k < d; ++k) {
            const double value = double(row[ptrdiff_t(k) * X.column_stride]);
            squared += value * value;
        }
        longest = squared > longest ? squared : longest;
    }
    return __builtin_sqrt(longest);
}

// The largest ‖x_i‖.
double longest_row(const Matrix& X, size_t n, size_t d) {
    return X.is_float32 ? longest_of<float>(X, n, d) : longest_of<double>(X, n, d);
}

}  // namespace

#define KPL_TEXT(name) #name
#define KPL_NAME(name) KPL_TEXT(name)
extern const Kernels table;
const Kernels table = {KPL_NAME(KPL_ISA), kLanes, kPanel, kDepth, exp_array, run_dual, run_primal, longest_row,
                       similarities, refine, harden, sum_rows, score_rows, unit_mean, &linear_kernels,
                       multiply_add_rate, exp_rate, read_rate};

}  // namespace KPL_ISA
}  // namespace kpl
