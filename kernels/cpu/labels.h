// Pseudo labels from similarities, class by class in float64 (docs/method.md 2, 3d; kpl_engine/solver/labels.py is the
// definition, down to what the infinities mean).
//
//   softmax            p = softmax(S / tau_t)
//   sinkhorn           sweeps of columns to q_j and rows to 1/n, from p/n, finally times n
//   stable_greenkhorn  greedy steps with running marginals, in the log domain (greenkhorn.h)
//   stream             q_j p_ij / Σ_i p_ij
//   iters = kConverged sweeps of columns to n q_j and rows to 1 until every column is at its target
//
// S and P are (c, ld). A sweep reads and writes P twice, the second time from the L1 cache: 32 n c bytes, 2 n c
// divisions.
#pragma once

#include "core.h"
#include "greenkhorn.h"
#include "simd.h"
#include "softmax.h"

namespace kpl {
namespace KPL_ISA {
namespace {

constexpr int kMaxSweeps = 5000;          // tau_t = 0.01 needs tens to hundreds; the cap only bounds infeasible input
constexpr double kPlanTolerance = 1e-10;  // column error of a converged plan as a share of all images

// q: the prior, or ∝ s_j^gamma, or 1/c.
inline void set_targets(const LabelTask& task, const double* sums, double* targets) {
    double total = 0.0;
    for (size_t j = 0; j < task.c; ++j) {
        targets[j] = task.prior       ? task.prior[j]
                     : task.gamma > 0 ? __builtin_pow(sums[j], task.gamma)
                                      : 1.0 / double(task.c);
        total += targets[j];
    }
    if (!task.prior && task.gamma > 0)
        for (size_t j = 0; j < task.c; ++j) targets[j] /= total;
}

// p / sum · wanted, divided first: wanted / sum alone overflows when a column holds denormal numbers only.
inline void scale_column(const LabelTask& task, size_t j, double sum, double wanted) {
    double* column = task.P + j * task.ld;
    const double divisor = sum > 0 ? sum : 1.0;
    for (size_t i = 0; i < task.n; i += kLanes) store(column + i, load(column + i) / divisor * wanted);
}

// Columns to `wanted`, then rows to `mass`, for V vectors of images. Adds the new column sums, lane by lane.
template <int V>
void sweep_block(const LabelTask& task, size_t at, const double* sums, const double* wanted, double mass,
                 double* lanes) {
    Vec total[V] = {};
    for (size_t j = 0; j < task.c; ++j)
        for (int v = 0; v < V; ++v) {
            double* here = task.P + j * task.ld + at + v * kLanes;
            const Vec p = load(here) / (sums[j] > 0 ? sums[j] : 1.0) * wanted[j];
            store(here, p);
            total[v] += p;
        }
    for (int v = 0; v < V; ++v) total[v] = select(total[v] > 0.0, total[v], all(1.0));
    for (size_t j = 0; j < task.c; ++j) {
        Vec column = load(lanes + j * kLanes);
        for (int v = 0; v < V; ++v) {
            double* here = task.P + j * task.ld + at + v * kLanes;
            const Vec p = load(here) / total[v] * mass;
            store(here, p);
            column += p;
        }
        store(lanes + j * kLanes, column);
    }
}

inline void sweep(const LabelTask& task, double* sums, const double* wanted, double mass, double* lanes) {
    for (size_t j = 0; j < task.c; ++j) store(lanes + j * kLanes, Vec{});
    each_block(task.n, [&](auto width, size_t at) {
        sweep_block<decltype(width)::value>(task, at, sums, wanted, mass, lanes);
    });
    for (size_t j = 0; j < task.c; ++j) sums[j] = sum(load(lanes + j * kLanes));
}

// P <- P · scale; rows left without mass (all of it lay in forbidden classes) get the column targets.
inline void finish_rows(const LabelTask& task, double scale, const double* targets) {
    for (size_t i = 0; i < task.n; i += kLanes) {
        Vec total = {};
        for (size_t j = 0; j < task.c; ++j) {
            const Vec p = load(task.P + j * task.ld + i) * scale;
            store(task.P + j * task.ld + i, p);
            total += p;
        }
        const Bits empty = total == 0.0;
        if (any(empty))
            for (size_t j = 0; j < task.c; ++j)
                store(task.P + j * task.ld + i, select(empty, all(targets[j]), load(task.P + j * task.ld + i)));
    }
    fill_padding(task, 0.0);
}

inline void sinkhorn(const LabelTask& task, double* sums, const double* targets, double* lanes) {
    const double n = double(task.n);
    for (size_t j = 0; j < task.c; ++j) {
        scale_column(task, j, n, 1.0);
        sums[j] = column_sum<false>(task, j);
    }
    for (int64_t done = 0; done < task.iters; ++done) sweep(task, sums, targets, 1.0 / n, lanes);
    finish_rows(task, n, targets);
}

// The plan itself is scaled: potentials would overflow when -inf entries leave no plan with these marginals.
inline void converged_plan(const LabelTask& task, double* sums, const double* targets, double* wanted, double* lanes) {
    const double n = double(task.n);
    double total = 0.0;
    for (size_t j = 0; j < task.c; ++j) {
        wanted[j] = sums[j] > 0 ? targets[j] * n : 0.0;  // an impossible class leaves its share to the others
        total += wanted[j];
    }
    if (total > 0)
        for (size_t j = 0; j < task.c; ++j) wanted[j] *= n / total;
    for (int done = 0; done < kMaxSweeps; ++done) {
        double worst = 0.0;
        for (size_t j = 0; j < task.c; ++j) {
            const double gap = __builtin_fabs(sums[j] - wanted[j]);
            worst = gap > worst ? gap : worst;
        }
        if (worst <= kPlanTolerance * n) break;
        sweep(task, sums, wanted, 1.0, lanes);
    }
    finish_rows(task, 1.0, targets);
}

// Arrays over classes, `width` apart: c in whole vectors of the widest set.
struct ClassWork {
    double *sums, *targets, *wanted, *line, *columns, *lanes;
};

inline ClassWork class_work(const LabelTask& task, size_t width) {
    double* at = task.work + 2 * task.ld;
    return {at, at + width, at + 2 * width, at + 3 * width, at + 4 * width, at + 5 * width};
}

inline void refine_greedy(const LabelTask& task, const ClassWork& work, size_t width) {
    softmax<true>(task);
    for (size_t j = 0; j < task.c; ++j) work.sums[j] = column_sum<true>(task, j);
    set_targets(task, work.sums, work.targets);
    greenkhorn({&task, width, task.work, task.work + task.ld, work.columns, work.sums, work.targets, work.line});
}

// P <- labels of S, all storage given.
inline void refine(const LabelTask& task) {
    const size_t width = (task.c + 7) / 8 * 8;
    const ClassWork work = class_work(task, width);
    const bool balanced = task.method == LabelMethod::sinkhorn || task.method == LabelMethod::stable_greenkhorn;
    if (task.method == LabelMethod::stable_greenkhorn && task.iters != kConverged)
        return refine_greedy(task, work, width);
    softmax<false>(task);
    if (task.method == LabelMethod::softmax) return;
    for (size_t j = 0; j < task.c; ++j) work.sums[j] = column_sum<false>(task, j);
    set_targets(task, work.sums, work.targets);
    if (!balanced)
        for (size_t j = 0; j < task.c; ++j) scale_column(task, j, work.sums[j], work.targets[j]);
    else if (task.iters == kConverged)
        converged_plan(task, work.sums, work.targets, work.wanted, work.lanes);
    else
        sinkhorn(task, work.sums, work.targets, work.lanes);
}

// Rows whose maximum is above alpha become one-hot at their first maximum; how many. P (c, ld).
inline size_t harden(double* P, size_t n, size_t c, size_t ld, double alpha) {
    size_t hardened = 0;
    for (size_t i = 0; i < n; i += kLanes) {
        Vec best = load(P + i), index = {};
        for (size_t j = 1; j < c; ++j) {
            const Vec p = load(P + j * ld + i);
            index = select(p > best, all(double(j)), index);
            best = select(p > best, p, best);
        }
        const Bits sharp = best > alpha;
        if (!any(sharp)) continue;
        for (size_t j = 0; j < c; ++j) {
            const Vec one_hot = select(index == double(j), all(1.0), Vec{});
            store(P + j * ld + i, select(sharp, one_hot, load(P + j * ld + i)));
        }
        for (size_t k = 0; k < size_t(kLanes) && i + k < n; ++k) hardened += sharp[k] != 0;
    }
    for (size_t j = 0; j < c; ++j)
        for (size_t i = n; i < ld; ++i) P[j * ld + i] = 0.0;
    return hardened;
}

}  // namespace
}  // namespace KPL_ISA
}  // namespace kpl
