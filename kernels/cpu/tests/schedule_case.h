// Problems put to solve_dual and solve_primal, and what comes back.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "check.h"
#include "schedule_twin.h"

namespace twin {

using Exact = long double;

// Fewer problems where a step is slow: long double of 113 bits is computed in software, and sanitizers take their time.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSlow = true;
#else
constexpr bool kSlow = LDBL_MANT_DIG > 64;
#endif
struct Case {
    const char* form;
    int threads = 1;
    Layout::Kind layout = Layout::rows;
    bool is_float32 = true;
};

struct Found {
    std::vector<double> W, Z;
    kpl::ScheduleResult result = {};
};

inline bool same_bits(const std::vector<double>& a, const std::vector<double>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
}

inline bool same(const Found& a, const Found& b) {
    return same_bits(a.W, b.W) && same_bits(a.Z, b.Z) && a.result.halvings == b.result.halvings &&
           a.result.norm == b.result.norm;
}

inline kpl::ScheduleOptions options_of(double lr, double tau_i, long iters) {
    kpl::ScheduleOptions options = {};
    options.lr = lr;
    options.tau_i = tau_i;
    options.iters = iters;
    options.max_drift = 1e4;
    options.early_exit = true;
    return options;
}

inline Found solve(const Values& in, kpl::Matrix X, kpl::Matrix T, const kpl::ScheduleOptions& options,
                   const Case& with) {
    kpl::Problem problem = {};
    problem.n = in.n;
    problem.d = in.d;
    problem.c = in.c;
    problem.X = X;
    problem.T = T;
    problem.P = in.P.data();
    problem.options = options;
    problem.threads = with.threads;
    Found found;
    found.W.assign(in.d * in.c, std::numeric_limits<double>::quiet_NaN());
    found.Z.assign(in.n * in.c, std::numeric_limits<double>::quiet_NaN());
    kpl::Outcome outcome = {};
    outcome.W = found.W.data();
    outcome.Z = found.Z.data();
    (with.form[0] == 'd' ? kpl::solve_dual : kpl::solve_primal)(problem, outcome);
    found.result = outcome.result;
    return found;
}

inline Found solve(const Values& in, const kpl::ScheduleOptions& options, const Case& with) {
    const Layout X(in.X, in.n, in.d, with.layout, with.is_float32), T(in.T, in.d, in.c, with.layout, !with.is_float32);
    return solve(in, X.matrix(), T.matrix(), options, with);
}

template <typename Real>
double largest_gap(const std::vector<double>& found, const std::vector<Real>& expected) {
    double worst = 0.0;
    for (size_t i = 0; i < found.size(); ++i) {
        const double gap = double(std::fabs(Exact(found[i]) - Exact(expected[i])));
        if (!(gap <= worst)) worst = gap;  // NaN is the worst of all, and stays
    }
    return worst;
}

}  // namespace twin
