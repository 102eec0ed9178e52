// The methods of label refinement as docs/method.md 2 and 3d write them, in long double: the twin of labels.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "core.h"

namespace labels_twin {

using Real = long double;

struct Problem {
    size_t n, c;
    std::vector<double> S;  // (n, c) row by row
    kpl::LabelMethod method = kpl::LabelMethod::softmax;
    double tau_t = 0.01, gamma = 0.0;
    int64_t iters = 20;
    std::vector<double> prior = {};
};

using Exact = std::vector<Real>;

inline Exact softmax(const Problem& in) {
    Exact P(in.n * in.c);
    for (size_t i = 0; i < in.n; ++i) {
        const double* s = &in.S[i * in.c];
        const double peak = *std::max_element(s, s + in.c);
        Real total = 0;
        for (size_t j = 0; j < in.c; ++j) {
            P[i * in.c + j] = s[j] == peak ? Real(1) : std::exp((Real(s[j]) - Real(peak)) / Real(in.tau_t));
            total += P[i * in.c + j];
        }
        for (size_t j = 0; j < in.c; ++j) P[i * in.c + j] /= total;
    }
    return P;
}

inline Real column_sum(const Problem& in, const Exact& P, size_t j) {
    Real total = 0;
    for (size_t i = 0; i < in.n; ++i) total += P[i * in.c + j];
    return total;
}

inline Exact targets_of(const Problem& in, const Exact& P) {
    Exact q(in.c, Real(1) / Real(in.c));
    Real total = 0;
    for (size_t j = 0; j < in.c; ++j) {
        if (!in.prior.empty()) q[j] = in.prior[j];
        else if (in.gamma > 0) q[j] = std::pow(column_sum(in, P, j), Real(in.gamma));
        total += q[j];
    }
    for (size_t j = 0; j < in.c; ++j) q[j] /= total;
    return q;
}

inline void scale_columns(const Problem& in, Exact& P, const Exact& wanted) {
    for (size_t j = 0; j < in.c; ++j) {
        const Real sum = column_sum(in, P, j);
        for (size_t i = 0; i < in.n; ++i) P[i * in.c + j] *= sum > 0 ? wanted[j] / sum : Real(1);
    }
}

inline Exact sinkhorn(const Problem& in) {
    Exact P = softmax(in);
    const Exact q = targets_of(in, P);
    const int64_t sweeps = in.iters == kpl::kConverged ? 4000 : in.iters;
    for (int64_t done = 0; done < sweeps; ++done) {
        scale_columns(in, P, q);
        for (size_t i = 0; i < in.n; ++i) {
            Real total = 0;
            for (size_t j = 0; j < in.c; ++j) total += P[i * in.c + j];
            for (size_t j = 0; j < in.c; ++j) P[i * in.c + j] *= total > 0 ? 1 / total : Real(1);
        }
    }
    return P;
}

struct Choice {
    Real gap;
    bool is_column;
    size_t index;
};

// Every line's gap, the furthest first; columns of target 0 and mass 0 have none.
inline std::vector<Choice> gaps_of(const Problem& in, const Exact& P, const Exact& q, bool first) {
    std::vector<Choice> gaps;
    for (size_t i = 0; i < in.n; ++i) {
        Real total = 0;
        for (size_t j = 0; j < in.c; ++j) total += P[i * in.c + j];
        gaps.push_back({std::fabs((first ? Real(1) : total) - Real(1) / Real(in.n)), false, i});
    }
    for (size_t j = 0; j < in.c; ++j) gaps.push_back({std::fabs(column_sum(in, P, j) - q[j]), true, j});
    std::stable_sort(gaps.begin(), gaps.end(), [](const Choice& a, const Choice& b) { return a.gap > b.gap; });
    return gaps;
}

// False where rounding decides between two lines: there float64 may rightly take the other one.
inline bool greenkhorn(const Problem& in, Exact& P) {
    P = softmax(in);
    const Exact q = targets_of(in, P);
    for (int64_t done = 0; done < in.iters; ++done) {
        const std::vector<Choice> gaps = gaps_of(in, P, q, done == 0);
        const Choice& best = gaps[0];
        const bool rows_start_equal = done == 0 && !best.is_column;
        if (!rows_start_equal && gaps.size() > 1 && best.gap - gaps[1].gap < 1e-12L) return false;
        Real total = 0;
        const size_t lines = best.is_column ? in.n : in.c;
        const auto at = [&](size_t k) { return best.is_column ? k * in.c + best.index : best.index * in.c + k; };
        for (size_t k = 0; k < lines; ++k) total += P[at(k)];
        const Real wanted = best.is_column ? q[best.index] : Real(1) / Real(in.n);
        for (size_t k = 0; k < lines; ++k) P[at(k)] *= wanted / total;
    }
    return true;
}

inline Exact stream(const Problem& in) {
    Exact P = softmax(in);
    scale_columns(in, P, targets_of(in, P));
    return P;
}

}  // namespace labels_twin
