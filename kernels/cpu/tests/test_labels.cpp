// Every method of label refinement against its formula in long double, and the defined behaviour at the edges.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <vector>

#include "check.h"
#include "labels_twin.h"
#include "refine.h"

namespace {

using check::expect;
using labels_twin::Exact;
using labels_twin::Problem;
using labels_twin::Real;
using Method = kpl::LabelMethod;

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr bool kEmulated = LDBL_MANT_DIG > 64;  // 113 bits are computed in software: fewer cases
// An exponent near -745 is known to half an ulp, 6e-14, and so is what it is a power of; a few such roundings add up.
constexpr double kRelative = 5e-13;
constexpr double kDenormal = 1e-320;  // what a few roundings of denormal numbers add up to

std::vector<double> refine(const Problem& in) {
    std::vector<double> labels(in.n * in.c, kNan);
    const kpl::Matrix S = {in.S.data(), ptrdiff_t(in.c), 1, false};
    const bool done = kpl::refine_labels({in.n, in.c, S, in.method, in.tau_t, in.gamma, in.iters,
                                          in.prior.empty() ? nullptr : in.prior.data(), labels.data(), false});
    const bool has_nan = std::any_of(in.S.begin(), in.S.end(), [](double s) { return std::isnan(s); });
    expect(done != has_nan, "n = %zu, c = %zu: NaN found is %d", in.n, in.c, !done);
    return labels;
}

// The same on one array for each argument of the kernel, so that a sanitizer sees where each of them ends.
std::vector<double> refine_bare(const Problem& in) {
    const kpl::Kernels& table = kpl::kernels();
    const size_t ld = (in.n + table.lanes - 1) / table.lanes * table.lanes;
    std::vector<double> S(in.c * ld, kNan), P(in.c * ld, kNan), work(kpl::label_work(in.c, ld), kNan);
    for (size_t i = 0; i < in.n; ++i)
        for (size_t j = 0; j < in.c; ++j) S[j * ld + i] = in.S[i * in.c + j];
    table.refine({in.n, in.c, ld, in.method, in.tau_t, in.gamma, in.iters,
                  in.prior.empty() ? nullptr : in.prior.data(), S.data(), P.data(), work.data()});
    std::vector<double> labels(in.n * in.c);
    for (size_t i = 0; i < ld; ++i)
        for (size_t j = 0; j < in.c; ++j)
            if (i < in.n)
                labels[i * in.c + j] = P[j * ld + i];
            else
                expect(P[j * ld + i] == 0.0, "padding holds %g", P[j * ld + i]);
    return labels;
}

void compare(const Problem& in, const Exact& exact, double relative, const char* what) {
    const std::vector<double> labels = refine(in), bare = refine_bare(in);
    for (size_t k = 0; k < labels.size(); ++k) {
        const Real error = std::fabs(Real(labels[k]) - exact[k]);
        expect(error <= relative * exact[k] + kDenormal, "%s n = %zu, c = %zu: entry %zu is %.17g, not %.17Lg", what,
               in.n, in.c, k, labels[k], exact[k]);
        expect(labels[k] == bare[k], "%s n = %zu, c = %zu: %.17g through the kernel, %.17g in a call", what, in.n, in.c,
               bare[k], labels[k]);
    }
}

Problem random_problem(check::Random& random, size_t n, size_t c, double spread) {
    Problem in = {n, c, std::vector<double>(n * c)};
    for (double& s : in.S) s = 0.25 + spread * random.normal();
    if (random.bits() % 3 == 0)
        for (double& s : in.S) s = random.bits() % 10 == 0 ? -kInf : s;
    if (random.bits() % 3 == 0) in.gamma = 0.5;
    if (random.bits() % 3 == 0) {
        in.gamma = 0;
        double total = 0;
        for (size_t j = 0; j < c; ++j) in.prior.push_back(random.uniform(0.1, 1.0)), total += in.prior.back();
        for (double& share : in.prior) share /= total;
    }
    return in;
}

void test_against_long_double() {
    check::Random random(1);
    int decided = 0, cases = kEmulated ? 12 : 80;
    for (int seed = 0; seed < cases; ++seed) {
        const size_t n = 1 + random.bits() % 90, c = 1 + random.bits() % 11;
        Problem in = random_problem(random, n, c, seed % 2 ? 0.02 : 0.1);
        compare(in, labels_twin::softmax(in), kRelative, "softmax");
        in.method = Method::stream;
        compare(in, labels_twin::stream(in), kRelative, "stream");
        in.method = Method::sinkhorn;
        compare(in, labels_twin::sinkhorn(in), 20 * kRelative, "sinkhorn");  // each of 20 sweeps passes its rounding on
        in.method = Method::stable_greenkhorn;
        Exact exact;
        if (labels_twin::greenkhorn(in, exact)) {
            compare(in, exact, 20 * kRelative, "stable_greenkhorn");
            ++decided;
        }
    }
    expect(decided * 2 > cases, "stable_greenkhorn: %d of %d cases compared, too few to tell", decided, cases);
}

void test_converged() {
    check::Random random(2);
    for (const Method method : {Method::sinkhorn, Method::stable_greenkhorn}) {
        Problem in = {40, 4, std::vector<double>(160)};
        for (double& s : in.S) s = 0.02 * random.normal();
        in.method = method;
        in.iters = kpl::kConverged;
        const Exact exact = labels_twin::sinkhorn(in);
        const std::vector<double> labels = refine(in);
        for (size_t k = 0; k < labels.size(); ++k)  // the plan stops at columns that are off by 1e-10 of all images
            expect(std::fabs(Real(labels[k]) - exact[k]) < 1e-7, "converged: %g, not %Lg", labels[k], exact[k]);
    }
}

void test_infinities() {
    for (const Method method : {Method::softmax, Method::sinkhorn, Method::stable_greenkhorn, Method::stream})
        for (const int64_t iters : {int64_t(0), int64_t(20), kpl::kConverged}) {
            Problem in = {5, 3, {-kInf, -kInf, -kInf, kInf, 1, kInf, 0, -kInf, 1e308, -1e308, 1e308, 0}};
            in.S.insert(in.S.end(), {kInf, -kInf, 0});
            in.method = method;
            in.iters = iters;
            const std::vector<double> P = refine(in);
            for (const double p : P) expect(p >= 0 && p < kInf, "infinities: a label of %g", p);
            expect(P[4] == 0 && P[7] == 0 && P[13] == 0 && P[14] == 0, "infinities: an impossible class has mass");
            if (method == Method::softmax)
                expect(P[0] == P[2] && std::fabs(P[0] - 1.0 / 3) < 1e-15 && P[3] == 0.5 && P[5] == 0.5 && P[12] == 1,
                       "infinities: softmax gives %g %g %g", P[0], P[3], P[12]);
        }
}

// A class of exp(-2000) everywhere is tiny, not impossible; one of -inf everywhere stays without mass.
void test_underflow_and_impossible() {
    Problem in = {10, 3, {}};
    for (int i = 0; i < 10; ++i) in.S.insert(in.S.end(), {0.0, -20.0, -kInf});
    in.method = Method::stable_greenkhorn;
    const std::vector<double> P = refine(in);
    double sums[3] = {};
    for (size_t k = 0; k < P.size(); ++k) sums[k % 3] += P[k];
    expect(sums[1] > 0.3 && sums[2] == 0, "underflow: columns hold %g and %g", sums[1], sums[2]);
}

void expect_labels(const Problem& in, const std::vector<double>& expected, double relative, const char* what) {
    const std::vector<double> P = refine(in);
    for (size_t k = 0; k < P.size(); ++k)
        expect(std::fabs(P[k] - expected[k]) <= relative * expected[k], "%s: entry %zu is %.17g, not %.17g", what, k,
               P[k], expected[k]);
}

// Where lines are equally far off, the first column goes before the others, and a row before a column.
void test_greedy_ties() {
    const auto uniform = [](size_t n, size_t c) {
        Problem in = {n, c, std::vector<double>(n * c)};
        in.method = Method::stable_greenkhorn;
        in.iters = 1;
        return in;
    };
    const double sixth = 1.0 / 6, third = 1.0 / 3;
    expect_labels(uniform(3, 2), {sixth, 0.5, sixth, 0.5, sixth, 0.5}, 1e-15, "columns off by 1, rows by 2/3");
    expect_labels(uniform(2, 3), {sixth, sixth, sixth, third, third, third}, 1e-15, "columns off by 1/3, rows by 1/2");
    expect_labels(uniform(2, 2), {0.25, 0.25, 0.5, 0.5}, 1e-15, "rows and columns off by 1/2");
    Problem in = {3, 2, {0, -kInf, 0, -kInf, 0, -kInf}};
    in.method = Method::stable_greenkhorn;
    in.iters = 2;  // the first column, then the first row: the class without a chance takes no step
    expect_labels(in, {third, 0, sixth, 0, sixth, 0}, 1e-15, "a class without a chance");
}

void test_sweep_edges() {
    Problem in = {2, 3, {kInf, 0, 0, 0, 0, 0}};
    in.method = Method::sinkhorn;
    in.prior = {0, 0.25, 0.75};  // the first image is certain of a class that the prior forbids
    expect_labels(in, {0, 0.25, 0.75, 0, 0.25, 0.75}, 1e-14, "a row without mass gets the prior");
    in = {2, 3, {0, 0, -kInf, 0, 0, -kInf}};
    in.method = Method::sinkhorn;
    in.iters = kpl::kConverged;
    in.prior = {0.3, 0.2, 0.5};  // what the impossible class was to have goes to the others
    expect_labels(in, {0.6, 0.4, 0, 0.6, 0.4, 0}, 1e-9, "an impossible class");
    in = {10, 2, {}};
    for (int i = 0; i < 10; ++i) in.S.insert(in.S.end(), {0.0, -7.415});  // e^-741.5: 1 / the column's sum overflows
    for (const Method method : {Method::sinkhorn, Method::stream}) {
        in.method = method;
        const double share = method == Method::sinkhorn ? 0.5 : 0.05;
        expect_labels(in, std::vector<double>(20, share), 0.01, "a column of denormal numbers");
    }
}

void test_nan() {
    Problem in = {3, 2, {0.1, 0.2, kNan, 0.1, 0.3, 0.1}};
    std::vector<double> labels(6, -1);
    const kpl::Matrix S = {in.S.data(), 2, 1, false};
    expect(!kpl::refine_labels({3, 2, S, Method::sinkhorn, 0.01, 0, 20, nullptr, labels.data(), false}), "NaN passed");
    expect(std::count(labels.begin(), labels.end(), -1) == 6, "NaN: labels were written");
    const std::vector<double> P = refine(in);
    expect(std::isnan(P[2]) && std::isnan(P[3]) && P[0] + P[1] == 1, "softmax: NaN left its row, or left it out");
}

// Strides and dtypes change where numbers are read and written, and nothing else.
void test_layouts() {
    check::Random random(3);
    const size_t n = 37, c = 5;
    std::vector<float> rows(n * c), columns(n * c), backwards(n * c), labels(n * c), other(n * c);
    Problem in = {n, c, std::vector<double>(n * c)};
    in.method = Method::stable_greenkhorn;
    for (size_t i = 0; i < n; ++i)
        for (size_t j = 0; j < c; ++j) {
            const float s = float(0.25 + 0.02 * random.normal());
            in.S[i * c + j] = rows[i * c + j] = columns[j * n + i] = backwards[(n - 1 - i) * c + j] = s;
        }
    const std::vector<double> wide = refine(in);
    const kpl::Matrix layouts[] = {{rows.data(), ptrdiff_t(c), 1, true},
                                   {columns.data(), 1, ptrdiff_t(n), true},
                                   {&backwards[(n - 1) * c], -ptrdiff_t(c), 1, true}};
    for (const kpl::Matrix& S : layouts) {
        kpl::refine_labels({n, c, S, in.method, in.tau_t, 0, 20, nullptr, labels.data(), true});
        for (size_t k = 0; k < n * c; ++k)
            expect(labels[k] == float(wide[k]), "layouts: %g, not %g", labels[k], wide[k]);
    }
}

void test_harden() {
    check::Random random(4);
    for (const double alpha : {-1.0, 0.3, 0.6, 1.0}) {
        const size_t n = 29, c = 3, ld = 32;
        std::vector<double> P(c * ld), before;
        for (double& p : P) p = double(random.bits() % 5) / 4;  // many ties and many maxima of exactly 1
        before = P;
        size_t expected = 0;
        const size_t hardened = kpl::kernels().harden(P.data(), n, c, ld, alpha);
        for (size_t i = 0; i < n; ++i) {
            size_t best = 0;
            for (size_t j = 1; j < c; ++j) best = before[j * ld + i] > before[best * ld + i] ? j : best;
            const bool sharp = before[best * ld + i] > alpha;
            expected += sharp;
            for (size_t j = 0; j < c; ++j)
                expect(P[j * ld + i] == (sharp ? double(j == best) : before[j * ld + i]), "harden: row %zu", i);
        }
        for (size_t j = 0; j < c; ++j) expect(P[j * ld + ld - 1] == 0, "harden: padding not zero");
        expect(hardened == expected, "harden: %zu rows, not %zu", hardened, expected);
    }
}

}  // namespace

int main(int argc, char** argv) {
    return check::run(argc, argv, [] {
        test_against_long_double();
        test_converged();
        test_infinities();
        test_underflow_and_impossible();
        test_greedy_ties();
        test_sweep_edges();
        test_nan();
        test_layouts();
        test_harden();
    });
}
