// Who takes the next burst, on a clock of the test's own.
#include <algorithm>
#include <cstdint>

#include "check.h"
#include "pace.h"

namespace {

using check::expect;

double time_s = 0.0;
double test_clock() { return time_s; }

struct Tally {
    std::int64_t alone = 0, together = 0, bursts = 0;
};

// A run of `steps` steps on a machine where a step takes the seconds given. A burst together is given up after its
// second step when that is out of patience, as run_bursts does.
Tally simulate(kpl::Pace& pace, std::int64_t steps, double alone_s, double together_s) {
    Tally tally;
    std::int64_t taken = 0;
    bool given_up = false;
    for (std::int64_t done = 0; done < steps; done += taken) {
        const kpl::Burst burst = pace.next(taken, given_up);
        const double step = burst.active == 1 ? alone_s : together_s;
        taken = std::min(burst.steps, steps - done);
        given_up = burst.active > 1 && step > burst.patience;
        if (given_up) taken = std::min<std::int64_t>(taken, 2);
        time_s += double(taken) * step;
        (burst.active == 1 ? tally.alone : tally.together) += taken;
        ++tally.bursts;
    }
    return tally;
}

void idle_cores_are_shared() {
    kpl::Pace pace(2, nullptr, test_clock);
    const Tally tally = simulate(pace, 2000, 10e-6, 5e-6);
    expect(tally.alone == 8, "idle: %lld steps alone, expected the first 8", static_cast<long long>(tally.alone));
    expect(tally.together == 1992, "idle: %lld steps together", static_cast<long long>(tally.together));
}

void busy_cores_are_left_alone() {
    kpl::Pace pace(2, nullptr, test_clock);
    const double start = time_s;
    const Tally tally = simulate(pace, 20000, 10e-6, 3e-3);
    expect(tally.together <= 2 * 12, "busy: %lld steps together", static_cast<long long>(tally.together));
    expect(time_s - start < 20000 * 10e-6 + 24 * 3e-3 + 1e-9, "busy: %g s", time_s - start);
}

void no_gain_is_no_reason() {
    kpl::Pace pace(4, nullptr, test_clock);
    const Tally tally = simulate(pace, 20000, 10e-6, 9.5e-6);
    expect(tally.together < 20000 / 8, "no gain: %lld steps together", static_cast<long long>(tally.together));
}

void a_machine_that_falls_idle_is_noticed() {
    kpl::Pace pace(2, nullptr, test_clock);
    simulate(pace, 5000, 10e-6, 3e-3);
    const Tally tally = simulate(pace, 20000, 10e-6, 5e-6);
    expect(tally.together > 10000, "idle again: %lld steps together", static_cast<long long>(tally.together));
}

void one_member_is_alone() {
    kpl::Pace pace(1, nullptr, test_clock);
    const Tally tally = simulate(pace, 1000000, 1e-6, 1.0);
    expect(tally.together == 0 && tally.bursts < 30, "one member: %lld bursts", static_cast<long long>(tally.bursts));
}

int questions = 0;

void a_run_can_be_stopped() {
    for (const int count : {1, 2}) {
        questions = 0;
        kpl::Pace pace(count, [] { return ++questions > 5; }, test_clock);
        const double start = time_s;
        std::int64_t taken = 0;
        for (;;) {
            const kpl::Burst burst = pace.next(taken, false);
            if (burst.active == 0) break;
            taken = burst.steps;
            time_s += double(taken) * 2e-3;
            if (!expect(time_s - start < 1.0, "%d members: not stopped, %d questions", count, questions)) return;
        }
        expect(questions == 6, "%d members: %d questions", count, questions);
    }
}

}  // namespace

int main(int argc, char** argv) {
    return check::run(argc, argv, [] {
        idle_cores_are_shared();
        busy_cores_are_left_alone();
        no_gain_is_no_reason();
        a_machine_that_falls_idle_is_noticed();
        one_member_is_alone();
        a_run_can_be_stopped();
    });
}
