// Both forms of the schedule against the published loop in long double, a few steps of every kind of problem.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <vector>

#include "check.h"
#include "schedule_case.h"

namespace {

using check::expect;
using twin::Case;
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

void hold_to_twin(const Values& in, double lr, double tau_i, long steps, double max_drift,
                  const std::vector<Case>& cases) {
    kpl::ScheduleOptions options = options_of(lr, tau_i, steps);
    const twin::Run<Exact> exact = twin::schedule<Exact>(in, options, steps);
    options.iters = exact.steps;
    options.max_drift = max_drift;
    options.early_exit = false;
    const twin::Run<double> plain = twin::schedule<double>(in, options, exact.steps);
    // Steps can multiply errors, so the measure is what the plain loop in float64 makes of the same input. A thousand
    // times that, for in few entries one sum of random errors can be far below another; and 20 roundings a step.
    const double allowed_W = 1000 * largest_gap(plain.W, exact.W) + 4e-15 * double(exact.steps + 2);
    double longest = 0.0;
    for (size_t i = 0; i < in.n; ++i) {
        double squared = 0.0;
        for (size_t k = 0; k < in.d; ++k) squared += in.X[i * in.d + k] * in.X[i * in.d + k];
        longest = std::max(longest, std::sqrt(squared));
    }
    const double allowed_Z = allowed_W * std::sqrt(double(in.d)) * std::max(1.0, longest);
    for (const Case& with : cases) {
        const Found found = solve(in, options, with);
        const double gap_W = largest_gap(found.W, exact.W), gap_Z = largest_gap(found.Z, exact.Z);
        // The dual form lets the length of a column be wrong by max_drift ulps before it measures.
        const double drift = with.form[0] == 'd' ? max_drift * DBL_EPSILON * std::max(1.0, longest) : 0.0;
        expect(gap_W <= allowed_W + drift && gap_Z <= allowed_Z + drift,
               "%s, %d threads, layout %d, float32 %d, (%zu, %zu, %zu), lr %g, tau_i %g, %ld steps, drift %g: W off by "
               "%g (allowed %g), Z by %g (allowed %g)",
               with.form, with.threads, with.layout, with.is_float32, in.n, in.d, in.c, lr, tau_i, exact.steps,
               max_drift, gap_W, allowed_W + drift, gap_Z, allowed_Z + drift);
        expect(found.result.iterations == exact.steps && found.result.halvings == exact.halvings,
               "%s (%zu, %zu, %zu): %lld steps and %lld halvings, expected %ld and %ld", with.form, in.n, in.d, in.c,
               static_cast<long long>(found.result.iterations), static_cast<long long>(found.result.halvings),
               exact.steps, exact.halvings);
        const double norm = double(exact.norm);
        expect(exact.steps == 0 || std::fabs(found.result.norm - norm) <= 1e-6 * norm + 1e-7 * double(in.n),
               "%s (%zu, %zu, %zu): gradient norm %g, expected %g", with.form, in.n, in.d, in.c, found.result.norm,
               norm);
    }
}

const std::vector<size_t> kImages = {1, 2, 7, 8, 9, 31, 32, 33, 65, 129};
const std::vector<size_t> kWidths = {1, 3, 8, 17, 100, 130};
const std::vector<size_t> kClasses = {1, 2, 3, 7, 8, 13};
constexpr int kThreads[] = {1, 2, 1, 3, 1, 1, 2, 7};  // more threads than cores wait long for each other
constexpr Labels kLabels[] = {Labels::soft, Labels::hard, Labels::light, Labels::zero, Labels::heavy};
constexpr Layout::Kind kLayouts[] = {Layout::rows, Layout::columns, Layout::every_second, Layout::backwards};
const std::vector<double> kDrifts = {1e4, 1e4, 0.5};  // 0.5: the dual form starts afresh after every step

// Every n with every d and c; threads, layouts, number types, labels and lr rotate through them.
void every_size() {
    size_t turn = 0;
    for (const size_t n : kImages)
        for (const size_t d : kWidths)
            for (const size_t c : kClasses) {
                ++turn;
                if (LDBL_MANT_DIG > 64 && turn % 11) continue;  // computed in software
                const Values in = twin::problem(n, d, c, kLabels[turn % 5], turn);
                std::vector<Case> cases;
                for (const char* form : {"dual", "primal"})
                    for (size_t k = 0; k < 2; ++k)
                        cases.push_back({form, kThreads[(turn / 3 + k) % 8], kLayouts[(turn / 4 + k) % 4],
                                         (turn / 16 + k) % 2 == 0});
                const bool tame = turn % 4 < 2;
                const long steps = long(turn % 7) * (kSlow || turn % 3 || n * d * c > 20000 ? 1 : 6);
                hold_to_twin(in, tame ? 1.0 : 10.0, tame ? 0.5 : 0.04, steps, kDrifts[turn % 3], cases);
            }
}

// tau_i so small that the row maximum has to be subtracted: exponents up to 20,000 in size.
void shifted_exponents() {
    for (const size_t c : {1, 2, 3, 8})
        for (const size_t n : {9, 33})
            for (const double tau_i : {2.5e-3, 1e-4}) {
                const Values in = twin::problem(n, 17, c, Labels::soft, n + c);
                hold_to_twin(in, 1e-3, tau_i, 5, 1e4,
                             {{"dual"}, {"dual", 3}, {"primal"}, {"primal", 2, Layout::columns, false}});
            }
}

// Rows that repeat one image: stride 0.
void zero_strides() {
    for (const size_t n : {7, 33}) {
        Values in = twin::problem(n, 17, 3, Labels::soft, n);
        const std::vector<double> row(in.X.begin(), in.X.begin() + 17);
        for (size_t i = 0; i < n; ++i) std::copy(row.begin(), row.end(), in.X.begin() + ptrdiff_t(i * 17));
        const std::vector<float> narrow(row.begin(), row.end());
        const kpl::ScheduleOptions options = options_of(1.0, 0.5, 6);
        for (const char* form : {"dual", "primal"})
            for (const bool is_float32 : {true, false}) {
                const Case with = {form, 2, Layout::rows, is_float32};
                const Layout T(in.T, in.d, in.c, Layout::rows, !is_float32);
                const void* data = is_float32 ? static_cast<const void*>(narrow.data()) : row.data();
                const Found found = solve(in, {data, 0, 1, is_float32}, T.matrix(), options, with);
                const bool equal = same(found, solve(in, options, with));
                expect(equal, "%s: rows of stride 0 are not rows written out", form);
            }
    }
}

// One image, one step with eta G = W exactly: that column has no length, and keeps its direction, and its length until
// another step moves it.
void vanishing_column() {
    const Values in = {1, 2, 2, {1.0, 0.0}, {1.0, 1.0, 0.0, 0.0}, {0.0, 0.5}};
    for (const char* form : {"dual", "primal"})
        for (const int threads : {1, 2}) {
            const Found found = solve(in, options_of(2.0, 1.0, 1), {form, threads});
            const bool stayed = twin::same_bits(found.W, in.T) && found.Z[0] == 1.0 && found.Z[1] == 1.0;
            expect(stayed, "%s: the vanished column moved", form);
        }
    const Values longer = {1, 2, 2, {1.0, 0.0}, {2.0, 2.0, 0.0, 0.5}, {0.0, 0.5}};
    for (const long steps : {1, 2, 3}) hold_to_twin(longer, 4.0, 1.0, steps, 1e4, {{"dual"}, {"primal"}});
}

}  // namespace

int main(int argc, char** argv) {
    return check::run(argc, argv, [] {
        every_size();
        shifted_exponents();
        zero_strides();
        vanishing_column();
    });
}
