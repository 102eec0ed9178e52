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

// Where a run stands.
struct Progress {
    StepSize step;
    int64_t done;
    bool settled, frozen;
};

inline bool is_over(const Progress& at, const ScheduleOptions& options) {
    return at.settled || at.frozen || at.done >= options.iters;
}

// Takes bursts of steps until the run is over, alone or together as the clock advises. `follow()` makes a member stand
// where the first one does. `take(crew, tick)` takes one step and calls `tick()` before its last meeting, but after
// another: there the first member says whether the burst has lost patience, and all have read it before it says more.
template <typename Follow, typename Take>
void run_bursts(Pace& pace, const Member& member, const ScheduleOptions& options, const Progress& at, int64_t* lost,
                Follow follow, Take take) {
    const Member alone = {0, 1, nullptr};
    Burst burst = {0, 0, 0.0, 0};
    int64_t taken = 0;
    bool given_up = false;
    while (!is_over(at, options)) {
        burst = member.index == 0 ? next_burst(pace, taken, given_up) : await_burst(pace, burst.number);
        if (member.index > 0) follow();
        if (burst.active == 0) break;
        const bool together = burst.active > 1, watches = together && member.index == 0;
        double last = 0.0;
        given_up = false;
        for (taken = 0; taken < burst.steps && !given_up && !is_over(at, options); ++taken) {
            take(together ? member : alone, [&] {
                if (!watches) return;
                const double time = now();
                *lost = taken > 0 && time - last > burst.patience;  // the first step waits for sleepers to wake
                last = time;
            });
            given_up = together && *lost != 0;
        }
        // All have read what the burst left in shared memory before the first member goes on alone and writes again.
        if (together) meet(member);
    }
    if (member.index == 0) end_bursts(pace);
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
