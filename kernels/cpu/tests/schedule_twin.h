// The published loop in any precision, as plain as it can be written, and random problems in any layout for it.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "check.h"
#include "schedule.h"

namespace twin {

// Dense values, all row by row: X (n, d), T (d, c), P (n, c) already hardened.
struct Values {
    size_t n, d, c;
    std::vector<double> X, T, P;
};

template <typename Real>
struct Run {
    std::vector<Real> W, Z;  // (d, c) and (n, c)
    Real norm = 0;
    long steps = 0, halvings = 0;
};

template <typename Real>
void multiply_rows(const Values& in, const std::vector<Real>& W, std::vector<Real>& Z) {
    for (size_t i = 0; i < in.n; ++i)
        for (size_t j = 0; j < in.c; ++j) {
            Real total = 0;
            for (size_t k = 0; k < in.d; ++k) total += Real(in.X[i * in.d + k]) * W[k * in.c + j];
            Z[i * in.c + j] = total;
        }
}

// softmax(Z / tau_i) - P in place.
template <typename Real>
void residual(const Values& in, Real tau_i, std::vector<Real>& Z) {
    for (size_t i = 0; i < in.n; ++i) {
        Real* row = Z.data() + i * in.c;
        Real top = row[0], total = 0;
        for (size_t j = 1; j < in.c; ++j) top = row[j] > top ? row[j] : top;
        for (size_t j = 0; j < in.c; ++j) total += row[j] = std::exp((row[j] - top) / tau_i);
        for (size_t j = 0; j < in.c; ++j) row[j] = row[j] / total - Real(in.P[i * in.c + j]);
    }
}

// W <- unit columns of W - eta G; a column that vanished stays.
template <typename Real>
void take_step(const Values& in, Real eta, const std::vector<Real>& G, std::vector<Real>& W) {
    std::vector<Real> moved(in.d);
    for (size_t j = 0; j < in.c; ++j) {
        Real squared = 0;
        for (size_t k = 0; k < in.d; ++k) {
            moved[k] = W[k * in.c + j] - eta * G[k * in.c + j];
            squared += moved[k] * moved[k];
        }
        if (squared > 0)
            for (size_t k = 0; k < in.d; ++k) W[k * in.c + j] = moved[k] / std::sqrt(squared);
    }
}

// `steps` steps; fewer where two norms in a row agree to 1e-9 or are next to 0, for there rounding decides whether lr
// halves. (With one class the gradient does not depend on W, and every precision finds each norm equal to the last.)
template <typename Real>
Run<Real> schedule(const Values& in, const kpl::ScheduleOptions& options, long steps) {
    Run<Real> run;
    run.W.assign(in.T.begin(), in.T.end());
    run.Z.resize(in.n * in.c);
    std::vector<Real> G(in.d * in.c);
    Real lr = Real(options.lr);
    const Real tau_i = Real(options.tau_i);
    for (; run.steps < steps; ++run.steps) {
        multiply_rows(in, run.W, run.Z);
        residual(in, tau_i, run.Z);
        Real squares = 0;
        for (size_t k = 0; k < in.d; ++k)
            for (size_t j = 0; j < in.c; ++j) {
                Real total = 0;
                for (size_t i = 0; i < in.n; ++i) total += Real(in.X[i * in.d + k]) * run.Z[i * in.c + j];
                G[k * in.c + j] = total;
                squares += total * total;
            }
        const Real norm = std::sqrt(squares);
        const Real undecided = Real(1e-9) * run.norm + Real(1e-12) * Real(in.n);
        if (in.c > 1 && run.steps > 0 && std::fabs(norm - run.norm) <= undecided) break;
        if (run.steps > 0 && in.c > 1 && norm > run.norm) lr /= 2, ++run.halvings;
        run.norm = norm;
        take_step(in, lr / (Real(in.n) * tau_i), G, run.W);
    }
    multiply_rows(in, run.W, run.Z);
    return run;
}

// A matrix laid out in memory of its own, with NaN in every entry that is not part of it.
class Layout {
public:
    enum Kind { rows, columns, every_second, backwards };

    Layout(const std::vector<double>& values, size_t height, size_t width, Kind kind, bool is_float32) {
        const ptrdiff_t h = ptrdiff_t(height), w = ptrdiff_t(width);
        ptrdiff_t first = 0;
        switch (kind) {
            case rows: down_ = w, across_ = 1; break;
            case columns: down_ = 1, across_ = h; break;
            case every_second: down_ = 4 * w, across_ = 2; break;
            case backwards: down_ = -(w + 3), across_ = -1, first = (h - 1) * (w + 3) + w - 1; break;
        }
        const ptrdiff_t last = first + (down_ > 0 ? (h - 1) * down_ : 0) + (across_ > 0 ? (w - 1) * across_ : 0);
        const size_t size = size_t(last) + 1;
        first_ = first;
        if (is_float32)
            fill(floats_, size, values, height, width);
        else
            fill(doubles_, size, values, height, width);
    }

    kpl::Matrix matrix() const {
        if (floats_.empty()) return {doubles_.data() + first_, down_, across_, false};
        return {floats_.data() + first_, down_, across_, true};
    }

private:
    template <typename Number>
    void fill(std::vector<Number>& memory, size_t size, const std::vector<double>& values, size_t h, size_t w) {
        memory.assign(size, std::numeric_limits<Number>::quiet_NaN());
        for (size_t i = 0; i < h; ++i)
            for (size_t k = 0; k < w; ++k)
                memory[size_t(first_ + ptrdiff_t(i) * down_ + ptrdiff_t(k) * across_)] = Number(values[i * w + k]);
    }

    std::vector<float> floats_;
    std::vector<double> doubles_;
    ptrdiff_t first_ = 0, down_ = 1, across_ = 1;
};

enum class Labels { soft, hard, light, zero, heavy };

// Rows of X near one direction, as CLIP's are; some zero rows; columns of T of any length. Entries are float32 numbers.
inline Values problem(size_t n, size_t d, size_t c, Labels labels, std::uint64_t seed) {
    check::Random random(seed);
    Values made = {n, d, c, std::vector<double>(n * d), std::vector<double>(d * c), std::vector<double>(n * c)};
    std::vector<double> mean(d);
    for (double& entry : mean) entry = random.normal();
    for (size_t i = 0; i < n; ++i) {
        double squared = 0.0;
        for (size_t k = 0; k < d; ++k) {
            double& x = made.X[i * d + k];
            x = mean[k] + random.normal();
            squared += x * x;
        }
        const double scale = n > 4 && i % 11 == 3 ? 0.0 : 1.0 / std::sqrt(squared);
        for (size_t k = 0; k < d; ++k) made.X[i * d + k] = float(made.X[i * d + k] * scale);
    }
    for (double& entry : made.T) entry = float(random.normal() / std::sqrt(double(d)) * (seed % 2 ? 1.0 : 0.4));
    for (size_t i = 0; i < n; ++i) {
        double total = 0.0;
        double* row = made.P.data() + i * c;
        for (size_t j = 0; j < c; ++j) total += row[j] = random.uniform(0.0, 1.0);
        for (size_t j = 0; j < c; ++j) row[j] /= total;
        const size_t best = size_t(random.bits() % c);
        for (size_t j = 0; j < c; ++j) {
            if (labels == Labels::hard || (labels == Labels::heavy && i % 2)) row[j] = j == best;
            if (labels == Labels::light) row[j] /= double(n);
            if (labels == Labels::zero) row[j] = 0.0;
            if (labels == Labels::heavy) row[j] *= 3.0;
        }
    }
    return made;
}

}  // namespace twin
