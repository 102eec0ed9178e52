// What both forms of the schedule share: meeting between phases, and the rule of the step size.
#pragma once

#include "core.h"
#include "simd.h"

namespace kpl {
namespace KPL_ISA {
namespace {

inline void meet(const Member& member) {
    if (member.barrier) wait(*member.barrier);
}

// eta of the next step, lr halved if the norm grew.
inline double next_step(StepSize& step, double norm) {
    if (norm > step.norm) {
        step.lr /= 2;
        ++step.halvings;
    }
    step.last_change = norm > 0 ? __builtin_fabs(norm - step.norm) / norm : 0.0;
    step.norm = norm;
    return step.lr * step.scale;
}

// A step size of lr / (n tau_i), and how far the gradient can grow while no column of W moves by more than `movement`:
// |Δ softmax| <= |ΔZ| / tau_i and ‖X‖ <= sqrt(n) max‖x_i‖ give ‖ΔG‖ <= n sqrt(c) max‖x_i‖² movement / tau_i.
inline StepSize first_step(const ScheduleOptions& options, size_t n, size_t c, double longest) {
    const double slack =
        double(n) * __builtin_sqrt(double(c)) * longest * longest * options.movement / options.tau_i;
    return {options.lr, 1.0 / (double(n) * options.tau_i), __builtin_inf(), __builtin_inf(), 0, slack};
}

// Whether the steps still to come are proven not to move any column of W by more than `movement`. lr never grows, and
// a step moves a unit column by at most 2 eta ‖g_j‖. Not before the first step, which may start from other lengths.
inline bool is_frozen(const StepSize& step, const ScheduleOptions& options, int64_t done) {
    if (!(options.movement > 0) || done == 0) return false;
    const double left = double(options.iters - done);
    return 2.0 * left * step.lr * step.scale * (step.norm + step.slack) <= options.movement;
}

}  // namespace
}  // namespace KPL_ISA
}  // namespace kpl
