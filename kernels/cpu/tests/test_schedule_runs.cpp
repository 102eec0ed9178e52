// Whole runs of the schedule by their properties: equal bits, early exit, unit columns, Z = X W.
#include <cmath>
#include <vector>

#include "check.h"
#include "schedule_case.h"

namespace {

using check::expect;
using twin::Exact;
using twin::Found;
using twin::kSlow;
using twin::Labels;
using twin::largest_gap;
using twin::Layout;
using twin::options_of;
using twin::same;
using twin::solve;
using twin::Values;

constexpr Layout::Kind kLayouts[] = {Layout::rows, Layout::columns, Layout::every_second, Layout::backwards};

// Everything that promises bits: any number of threads (dual), a second run, any layout and number type.
void bits() {
    for (const size_t n : {1, 31, 65, 129})
        for (const size_t c : {1, 2, 7, 13}) {
            const Values in = twin::problem(n, 100, c, Labels::light, n * c);
            for (const double max_drift : {1e4, 0.5}) {  // 0.5: afresh from W after every step
                // The first 8 steps are taken by one member alone (pace.cpp), the next 8 together.
                kpl::ScheduleOptions options = options_of(10.0, 0.04, 24);
                options.max_drift = max_drift;
                options.early_exit = false;
                const Found dual = solve(in, options, {"dual"});
                for (const int threads : {1, 2, 3, 7})
                    expect(same(solve(in, options, {"dual", threads, kLayouts[threads % 4], threads % 2 == 0}), dual),
                           "dual (%zu, 100, %zu): %d threads give other bits than one", n, c, threads);
                for (const int threads : {1, 3, 7}) {
                    const Found primal = solve(in, options, {"primal", threads});
                    expect(same(solve(in, options, {"primal", threads, Layout::columns}), primal),
                           "primal (%zu, 100, %zu), %d threads: a second run gives other bits", n, c, threads);
                }
            }
        }
}

// The exact early exit, where it happens and where it does not, is the full run.
void early_exit() {
    long stopped = 0;
    for (const size_t n : {2, 9, 33})
        for (const size_t c : {1, 2, 3, 7})
            for (const Labels labels : {Labels::light, Labels::hard, Labels::zero})
                for (const char* form : {"dual", "primal"}) {
                    const Values in = twin::problem(n, 24, c, labels, n + c);
                    kpl::ScheduleOptions options = options_of(10.0, 0.04, kSlow ? 150 : 400);
                    const Found early = solve(in, options, {form, n == 33 && c > 2 ? 2 : 1});
                    options.early_exit = false;
                    const Found full = solve(in, options, {form, n == 33 && c > 2 ? 2 : 1});
                    expect(same(early, full), "%s (%zu, 24, %zu): early exit after %lld steps is not the full run",
                           form, n, c, static_cast<long long>(early.result.iterations));
                    expect(full.result.iterations == options.iters && !full.result.settled,
                           "the full run takes every step");
                    expect(early.result.settled || early.result.iterations == options.iters,
                           "%s: left before the end without having settled", form);
                    stopped += early.result.settled;
                }
    expect(stopped > 10 || kSlow, "early exit: only %ld runs settled, which tests little", stopped);
}

// One class: R is 0, and no step after the first changes a bit. Early exit stops at once, and the full run may not
// count such steps as drift and start afresh from W, which would change bits.
void early_exit_without_drift() {
    const Values in = twin::problem(33, 24, 1, Labels::hard, 2);
    kpl::ScheduleOptions options = options_of(10.0, 0.04, 60);
    options.max_drift = 40.0;
    const Found early = solve(in, options, {"dual"});
    options.early_exit = false;
    expect(early.result.settled && early.result.iterations < 4, "R = 0 still moves Z after %lld steps",
           static_cast<long long>(early.result.iterations));
    expect(same(early, solve(in, options, {"dual"})), "dual: steps that change no bit made the full run start afresh");
}

// Left early because the steps left cannot move W by more than `movement`: they do not.
void frozen() {
    long left_early = 0;
    for (const char* form : {"dual", "primal"})
        for (const double movement : {1e-9, 1e-4, 1e-2}) {
            const Values in = twin::problem(31, 24, 3, Labels::light, 4);
            kpl::ScheduleOptions options = options_of(0.01, 0.5, 300);
            const Found full = solve(in, options, {form});
            options.movement = movement;
            const Found found = solve(in, options, {form, 2});
            const std::vector<Exact> W(full.W.begin(), full.W.end());
            expect(largest_gap(found.W, W) <= movement, "%s: left after %lld steps, W had %g to go, not %g", form,
                   static_cast<long long>(found.result.iterations), largest_gap(found.W, W), movement);
            expect(found.result.frozen == (found.result.iterations < options.iters), "%s: frozen or not", form);
            left_early += found.result.frozen;
        }
    expect(left_early >= 2, "only %ld runs froze, which tests little", left_early);
}

// Long runs: unit columns, Z = X W.
void long_runs() {
    for (const size_t n : {33, 129})
        for (const size_t c : {2, 7})
            for (const char* form : {"dual", "primal"}) {
                const Values in = twin::problem(n, 17, c, Labels::soft, n);
                const Found found = solve(in, options_of(10.0, 0.1, kSlow ? 60 : 1000), {form, 2});
                for (size_t j = 0; j < c; ++j) {
                    double squared = 0.0;
                    for (size_t k = 0; k < in.d; ++k) squared += found.W[k * c + j] * found.W[k * c + j];
                    expect(std::fabs(squared - 1.0) <= 1e-14, "%s: squared length 1 + %g", form, squared - 1.0);
                }
                std::vector<Exact> W(found.W.begin(), found.W.end()), Z(n * c);
                twin::multiply_rows(in, W, Z);
                // 1e4 ulps of drift pass before the dual form measures.
                expect(largest_gap(found.Z, Z) <= (form[0] == 'd' ? 1e-11 : 1e-14), "%s: Z is not X W, off by %g", form,
                       largest_gap(found.Z, Z));
            }
}

// Soft labels: steps shorten the columns, which multiplies an error of their length in every step. Starting afresh from
// W keeps Z = X W; without it runs like these were off by up to 0.6.
void drift() {
    check::Random random(5);
    for (const std::uint64_t seed : {1, 2, 3, 4, 5, 6, 7, 8}) {
        Values in = twin::problem(8, 2, 5, Labels::soft, seed);
        for (double& x : in.X) x = random.normal();
        const Found found = solve(in, options_of(1000.0, 0.5, 600), {"dual", 1 + int(seed % 2), Layout::rows, false});
        std::vector<Exact> W(found.W.begin(), found.W.end()), Z(in.n * in.c);
        twin::multiply_rows(in, W, Z);
        const double gap = largest_gap(found.Z, Z);
        expect(gap <= 1e-10, "dual, seed %d: Z drifted from X W by %g", int(seed), gap);
    }
}

}  // namespace

int main(int argc, char** argv) {
    return check::run(argc, argv, [] {
        bits();
        early_exit();
        early_exit_without_drift();
        frozen();
        long_runs();
        drift();
    });
}
