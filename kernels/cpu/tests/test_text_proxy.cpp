// Text proxies against their formulas in long double; the same bits for every layout, position and number of threads.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "check.h"
#include "refine.h"

namespace {

using check::expect;
using Real = long double;

struct Found {
    std::vector<double> scores;
    std::vector<int64_t> kept;
    std::vector<float> T;
    bool fits;
};

struct Knowledge {
    size_t d;
    std::vector<float> E;
    std::vector<int64_t> offsets;

    size_t classes() const { return offsets.size() - 1; }
    size_t rows(size_t j) const { return size_t(offsets[j + 1] - offsets[j]); }
};

Knowledge random_knowledge(check::Random& random, size_t d, size_t c) {
    Knowledge base = {d, {}, {0}};
    for (size_t j = 0; j < c; ++j) base.offsets.push_back(base.offsets.back() + 1 + int64_t(random.bits() % 15));
    for (int64_t i = 0; i < base.offsets.back(); ++i)
        for (size_t k = 0; k < d; ++k) base.E.push_back(float(random.normal() / std::sqrt(double(d))));
    return base;
}

std::vector<float> random_rows(check::Random& random, size_t n, size_t d) {
    std::vector<float> X(n * d);
    for (float& x : X) x = float((0.2 + random.normal()) / std::sqrt(double(d)));
    return X;
}

Found select(const kpl::Matrix& X, size_t n, const Knowledge& base, size_t k, int threads) {
    size_t kept = 0;
    for (size_t j = 0; j < base.classes(); ++j) kept += std::min(k, base.rows(j));
    Found found = {std::vector<double>(size_t(base.offsets.back())), std::vector<int64_t>(kept, -1),
                   std::vector<float>(base.d * base.classes()), false};
    found.fits = kpl::select_text_proxies({n, base.d, base.classes(), X, base.E.data(), base.offsets.data(), k, 1e3,
                                           threads, found.scores.data(), found.kept.data(), found.T.data()});
    return found;
}

std::vector<Real> exact_mean(const std::vector<float>& X, size_t n, size_t d) {
    std::vector<Real> mean(d);
    for (size_t i = 0; i < n; ++i)
        for (size_t k = 0; k < d; ++k) mean[k] += Real(X[i * d + k]) / Real(n);
    return mean;
}

void check_class(const Knowledge& base, const Found& found, size_t j, const int64_t* kept, size_t width) {
    const double* scores = &found.scores[size_t(base.offsets[j])];
    std::vector<int64_t> order(base.rows(j));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return scores[a] > scores[b]; });
    expect(std::equal(kept, kept + width, order.begin()), "class %zu: not the %zu best", j, width);
    std::vector<Real> mean(base.d);
    Real squared = 0;
    for (size_t k = 0; k < base.d; ++k) {
        for (size_t i = 0; i < width; ++i) mean[k] += base.E[(size_t(base.offsets[j]) + size_t(kept[i])) * base.d + k];
        squared += mean[k] * mean[k];
    }
    for (size_t k = 0; k < base.d; ++k) {
        const Real wanted = mean[k] / std::sqrt(squared);
        const float got = found.T[k * base.classes() + j];
        expect(std::fabs(got - wanted) < 1.2e-7L * std::fabs(wanted) + 1e-15L, "T: %.9g, not %.9Lg", got, wanted);
    }
}

void test_against_long_double() {
    check::Random random(1);
    for (int seed = 0; seed < 30; ++seed) {
        const size_t n = 1 + random.bits() % 600, d = 1 + random.bits() % 80, k = 1 + random.bits() % 10;
        const Knowledge base = random_knowledge(random, d, 1 + random.bits() % 5);
        const std::vector<float> X = random_rows(random, n, d);
        const Found found = select({X.data(), ptrdiff_t(d), 1, true}, n, base, k, 1);
        expect(found.fits, "ordinary rows: refused");
        const std::vector<Real> mean = exact_mean(X, n, d);
        for (size_t i = 0; i < found.scores.size(); ++i) {
            Real exact = 0, size = 0;
            for (size_t t = 0; t < d; ++t) {
                exact += mean[t] * base.E[i * d + t];
                size += std::fabs(mean[t] * base.E[i * d + t]);
            }
            // The mean is off by at most the rounding of n / 4 sums, each product and their sum by a few more.
            const Real allowed = (Real(n) + 40) * 1.2e-16L * (size + 1e-3L);
            expect(std::fabs(found.scores[i] - exact) <= allowed, "score: %.17g, not %.17Lg", found.scores[i], exact);
        }
        const int64_t* kept = found.kept.data();
        for (size_t j = 0; j < base.classes(); ++j) {
            check_class(base, found, j, kept, std::min(k, base.rows(j)));
            kept += std::min(k, base.rows(j));
        }
    }
}

bool same(const Found& a, const Found& b) {
    return a.scores == b.scores && a.kept == b.kept && a.T == b.T && a.fits == b.fits;
}

void test_threads_and_layouts() {
    check::Random random(2);
    const size_t n = 1700, d = 37;
    const Knowledge base = random_knowledge(random, d, 3);
    const std::vector<float> X = random_rows(random, n, d);
    std::vector<float> columns(n * d), apart(2 * n * d), backwards(n * d);
    for (size_t i = 0; i < n; ++i)
        for (size_t k = 0; k < d; ++k)
            columns[k * n + i] = apart[2 * (i * d + k)] = backwards[(n - 1 - i) * d + k] = X[i * d + k];
    const kpl::Matrix layouts[] = {{X.data(), ptrdiff_t(d), 1, true},
                                   {columns.data(), 1, ptrdiff_t(n), true},
                                   {apart.data(), 2 * ptrdiff_t(d), 2, true},
                                   {&backwards[(n - 1) * d], -ptrdiff_t(d), 1, true}};
    const Found expected = select(layouts[0], n, base, 4, 1);
    for (const kpl::Matrix& layout : layouts)
        for (const int threads : {1, 2, 3, 50})
            expect(same(select(layout, n, base, 4, threads), expected), "%d threads: other bits", threads);
}

// Equal descriptions score the same to the bit, and the first of them is kept first.
void test_ties() {
    check::Random random(3);
    for (const size_t d : {1, 3, 8, 31, 65, 771}) {
        const std::vector<float> one = random_rows(random, 1, d), X = random_rows(random, 5, d);
        Knowledge base = {d, {}, {0, 11, 22}};
        for (int i = 0; i < 22; ++i) base.E.insert(base.E.end(), one.begin(), one.end());
        const Found found = select({X.data(), ptrdiff_t(d), 1, true}, 5, base, 6, 1);
        for (const double score : found.scores) expect(score == found.scores[0], "d = %zu: equal rows differ", d);
        for (size_t i = 0; i < found.kept.size(); ++i)
            expect(found.kept[i] == int64_t(i % 6), "d = %zu: ties reorder", d);
    }
}

void test_cancelling() {
    const Knowledge base = {3, {1, 0, 0, -1, 0, 0}, {0, 2}};
    const std::vector<float> X = {0.6f, 0.8f, 0.0f};
    const Found found = select({X.data(), 3, 1, true}, 1, base, 2, 1);
    expect(found.T == std::vector<float>({1, 0, 0}), "cancelling: the column starts with %g", found.T[0]);
}

void test_rows_that_do_not_fit() {
    check::Random random(4);
    const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
    for (const float bad : {nan, inf, -inf, 1.1e3f, -3e38f})
        for (const size_t d : {1, 5, 64, 70})
            for (const size_t at : {0, 3, 300, 599}) {
                std::vector<float> X = random_rows(random, 600, d);
                expect(kpl::rows_fit({X.data(), ptrdiff_t(d), 1, true}, 600, d, 1e3, 2), "d = %zu: refused", d);
                X[at * d + d - 1] = bad;
                expect(!kpl::rows_fit({X.data(), ptrdiff_t(d), 1, true}, 600, d, 1e3, 2), "d = %zu: %g passed", d, bad);
            }
}

}  // namespace

int main(int argc, char** argv) {
    return check::run(argc, argv, [] {
        test_against_long_double();
        test_threads_and_layouts();
        test_ties();
        test_cancelling();
        test_rows_that_do_not_fit();
    });
}
