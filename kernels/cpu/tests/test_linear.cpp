// The closed form and the finishing of a solution against their definitions in long double; the same bits for every
// number of threads; classes with equal labels stay equal.
#include <algorithm>
#include <cmath>
#include <vector>

#include "check.h"
#include "closed_form.h"

namespace {

using check::expect;
using Real = long double;

constexpr double kTau = 0.04;

// Features of unit length with a common direction and one of each class, padded rows, and labels of mass 1.
struct Data {
    size_t n, d, c, stride;
    std::vector<float> X;
    std::vector<double> P;

    kpl::Images images(int threads) const { return {n, d, {X.data(), ptrdiff_t(stride), 1, true}, threads}; }
    float x(size_t i, size_t k) const { return X[i * stride + k]; }
};

Data make(size_t n, size_t d, size_t c, uint64_t seed) {
    check::Random random(seed);
    const size_t stride = d + seed % 3;
    Data data = {n, d, c, stride, std::vector<float>(n * stride, 7.0f), std::vector<double>(n * c)};
    for (size_t i = 0; i < n; ++i) {
        double squared = 0.0;
        std::vector<double> x(d);
        for (size_t k = 0; k < d; ++k) {
            x[k] = random.normal() + (k % 3 == 0 ? 1.5 : 0.0) + (k % c == i % c ? 0.5 : 0.0);
            squared += x[k] * x[k];
        }
        for (size_t k = 0; k < d; ++k) data.X[i * stride + k] = float(x[k] / std::sqrt(squared));
        double total = 0.0;
        for (size_t j = 0; j < c; ++j) total += data.P[i * c + j] = random.uniform(0.2, 1.0) + (i % c == j ? 2.0 : 0.0);
        for (size_t j = 0; j < c; ++j) data.P[i * c + j] /= total * double(n);
    }
    return data;
}

struct Moments {
    double square;
    std::vector<double> mean, XtP;
};

Moments moments_of(const Data& data, int threads) {
    Moments sums = {0.0, std::vector<double>(data.d), std::vector<double>(data.c * data.d)};
    sums.square = kpl::moments(data.images(threads), data.P.data(), data.c, sums.mean.data(), sums.XtP.data());
    return sums;
}

void check_moments(const Data& data) {
    const Moments sums = moments_of(data, 1);
    Real square = 0;
    for (size_t k = 0; k < data.d; ++k) {
        Real mean = 0;
        for (size_t i = 0; i < data.n; ++i) {
            mean += data.x(i, k);
            square += Real(data.x(i, k)) * data.x(i, k);
        }
        expect(std::fabs(double(mean / Real(data.n)) - sums.mean[k]) < 1e-15, "mean %zu", k);
        for (size_t j = 0; j < data.c; ++j) {
            Real sum = 0;
            for (size_t i = 0; i < data.n; ++i) sum += Real(data.P[i * data.c + j]) * data.x(i, k);
            expect(std::fabs(double(sum) - sums.XtP[j * data.d + k]) < 1e-15, "XtP %zu %zu", j, k);
        }
    }
    expect(std::fabs(double(square) / double(data.n) - sums.square) < 1e-14, "square %g", sums.square);
    std::vector<double> lengths(data.n);
    kpl::squared_lengths(data.images(2), lengths.data());
    for (size_t i = 0; i < data.n; ++i) expect(std::fabs(lengths[i] - 1.0) < 1e-6, "length %zu: %g", i, lengths[i]);
    for (int threads : {2, 5}) {
        const Moments again = moments_of(data, threads);
        expect(again.mean == sums.mean && again.XtP == sums.XtP && again.square == sums.square, "%d threads", threads);
    }
}

std::vector<double> solve(const Data& data, int threads, kpl::FixedPointResult& result) {
    const Moments sums = moments_of(data, threads);
    std::vector<double> W(data.d * data.c);
    result = kpl::fixed_point({data.images(threads), data.c, data.P.data(), sums.mean.data(), sums.XtP.data(), kTau,
                               1e-9, 5, W.data()});
    return W;
}

// unit(-G) for the exact gradient at W, (d, c).
std::vector<Real> step(const Data& data, const std::vector<double>& W) {
    std::vector<Real> G(data.d * data.c);
    for (size_t i = 0; i < data.n; ++i) {
        std::vector<Real> z(data.c);
        Real total = 0;
        for (size_t j = 0; j < data.c; ++j) {
            for (size_t k = 0; k < data.d; ++k) z[j] += Real(data.x(i, k)) * W[k * data.c + j];
            total += z[j] = std::exp(z[j] / Real(kTau));
        }
        for (size_t j = 0; j < data.c; ++j)
            for (size_t k = 0; k < data.d; ++k)
                G[k * data.c + j] -= Real(data.x(i, k)) * (z[j] / total - Real(data.P[i * data.c + j]));
    }
    for (size_t j = 0; j < data.c; ++j) {
        Real squared = 0;
        for (size_t k = 0; k < data.d; ++k) squared += G[k * data.c + j] * G[k * data.c + j];
        for (size_t k = 0; k < data.d; ++k) G[k * data.c + j] /= std::sqrt(squared);
    }
    return G;
}

void check_fixed_point(const Data& data) {
    kpl::FixedPointResult result;
    const std::vector<double> W = solve(data, 1, result);
    expect(result.ending == kpl::Ending::kReached, "(%zu, %zu, %zu): ending %d, residual %g", data.n, data.d, data.c,
           int(result.ending), result.residual);
    const std::vector<Real> next = step(data, W);
    Real error = 0, spread = 0;
    for (size_t k = 0; k < data.d; ++k)
        for (size_t j = 1; j < data.c; ++j) {  // differences to the first class: what labels are made of
            const Real now = Real(W[k * data.c + j]) - W[k * data.c];
            error = std::max(error, std::fabs(next[k * data.c + j] - next[k * data.c] - now));
            spread = std::max(spread, std::fabs(now));
        }
    expect(error < 4e-9L * spread, "(%zu, %zu, %zu): step moves by %Lg of %Lg", data.n, data.d, data.c, error, spread);
    for (int threads : {2, 3}) {
        kpl::FixedPointResult again;
        expect(solve(data, threads, again) == W && again.residual == result.residual, "%d threads", threads);
    }
}

void check_equal_classes() {
    Data data = make(200, 45, 7, 5);
    for (size_t i = 0; i < data.n; ++i) data.P[i * 7 + 6] = data.P[i * 7];
    kpl::FixedPointResult result;
    const std::vector<double> W = solve(data, 2, result);
    for (size_t k = 0; k < data.d; ++k) expect(W[k * 7] == W[k * 7 + 6], "equal labels, unequal columns at %zu", k);
}

void check_not_positive() {
    Data data = make(70, 20, 2, 4);
    for (float& x : data.X) x *= 1e25f;  // squares leave float32
    kpl::FixedPointResult result;
    solve(data, 1, result);
    expect(result.ending == kpl::Ending::kNotPositive, "overflow: ending %d", int(result.ending));
}

struct Finished {
    std::vector<float> proxies, discriminants, logits, scores;
    std::vector<int64_t> labels;
    std::vector<char> undecided;
    bool fits;

    bool operator==(const Finished& other) const {
        return proxies == other.proxies && discriminants == other.discriminants && logits == other.logits &&
               scores == other.scores && labels == other.labels && undecided == other.undecided && fits == other.fits;
    }
};

Finished finish(const Data& data, const std::vector<double>& W, double scale, int threads) {
    const size_t n = data.n, d = data.d, c = data.c;
    Finished found = {std::vector<float>(d * c),   std::vector<float>(d * c), std::vector<float>(n * c),
                      std::vector<float>(n * c), std::vector<int64_t>(n),   std::vector<char>(n, 2), false};
    static_assert(sizeof(bool) == sizeof(char), "flags are written as bytes");
    const kpl::Finish out = {W.data(), scale, found.proxies.data(), found.discriminants.data(), found.logits.data(),
                             found.scores.data(), found.labels.data(), reinterpret_cast<bool*>(found.undecided.data())};
    found.fits = kpl::finish(data.images(threads), c, out);
    return found;
}

void check_finish(const Data& data) {
    check::Random random(data.n);
    std::vector<double> W(data.d * data.c);
    for (double& w : W) w = random.normal();
    const Finished found = finish(data, W, 3.0, 1);
    expect(found.fits, "ordinary numbers left float32");
    for (size_t i = 0; i < data.n; ++i) {
        std::vector<double> scores(data.c);
        for (size_t j = 0; j < data.c; ++j) {
            Real logit = 0, mean = 0;
            for (size_t k = 0; k < data.d; ++k)
                for (size_t l = 0; l < data.c; ++l) {
                    const Real part = Real(data.x(i, k)) * W[k * data.c + l];
                    if (l == j) logit += part;
                    mean += part / Real(data.c);
                }
            scores[j] = double(3 * (logit - mean));
            expect(std::fabs(found.logits[i * data.c + j] - double(logit)) < 1e-6, "logit %zu %zu", i, j);
            expect(std::fabs(found.scores[i * data.c + j] - scores[j]) < 3e-6, "score %zu %zu", i, j);
        }
        expect(found.labels[i] == std::max_element(scores.begin(), scores.end()) - scores.begin(), "label %zu", i);
        expect(found.undecided[i] == 0, "undecided %zu", i);  // margins of random proxies are far from rounding
    }
    for (int threads : {2, 5}) expect(finish(data, W, 3.0, threads) == found, "finish on %d threads", threads);
    W[0] = 1e39;
    expect(!finish(data, W, 3.0, 1).fits, "1e39 fits float32");
    std::fill(W.begin(), W.end(), 0.5);
    const Finished tied = finish(data, W, 3.0, 1);
    for (size_t i = 0; i < data.n; ++i)
        expect(tied.labels[i] == 0 && tied.undecided[i] == (data.c > 1), "tie %zu: label %d", i, int(tied.labels[i]));
}

void run() {
    // Both sides of n = d; sizes around vectors, panels, blocks and chunks; more classes than one group of columns.
    const size_t shapes[][3] = {{40, 96, 2}, {64, 64, 2}, {150, 37, 3}, {65, 130, 3}, {300, 64, 5},
                                {201, 200, 9}, {1100, 24, 2}};
    for (const auto& shape : shapes) {
        const Data data = make(shape[0], shape[1], shape[2], shape[0] + shape[2]);
        check_moments(data);
        check_fixed_point(data);
        check_finish(data);
    }
    check_finish(make(1, 1, 1, 1));
    check_equal_classes();
    check_not_positive();
}

}  // namespace

int main(int argc, char** argv) { return check::run(argc, argv, run); }
