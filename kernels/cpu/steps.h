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

}  // namespace
}  // namespace KPL_ISA
}  // namespace kpl
