// Greedy Sinkhorn in the log domain, n + c numbers a step (kpl_engine/solver/greenkhorn.py is the definition).
//
// The logarithms (c, ld) stay as they are; the state is one potential and one running sum per row and per column. A
// step on a column reads its logarithms three times and costs 3 n exponentials; a step on a row gathers its c entries
// and costs 3 c. Finding the furthest row reads the n running sums.
#pragma once

#include "core.h"
#include "simd.h"
#include "softmax.h"

namespace kpl {
namespace KPL_ISA {
namespace {

// Potentials, running sums, and the targets that the gaps are measured from. A line that cannot be rescaled has its
// sum at its aim, hence no gap, and is never chosen. Arrays over classes have padding to whole vectors.
struct Greedy {
    const LabelTask* task;
    size_t width;  // c in whole vectors
    double *rows, *row_sums;
    double *columns, *column_sums, *aims, *line;
};

struct Gap {
    double size;
    size_t index;  // the first of this size
};

// The largest |sums_j - aims_j|.
inline Gap furthest_column(const Greedy& state) {
    Gap worst = {-1.0, 0};
    for (size_t j = 0; j < state.task->c; ++j) {
        const double gap = __builtin_fabs(state.column_sums[j] - state.aims[j]);
        if (gap > worst.size) worst = {gap, j};
    }
    return worst;
}

// The largest |sums_i - 1/n|: its size first, without the index to carry along, then where it is.
inline Gap furthest_row(const Greedy& state) {
    const size_t n = state.task->n;
    const double aim = 1.0 / double(n);
    Vec worst[kBlock] = {};
    each_block(n, [&](auto width, size_t at) {
        for (int v = 0; v < decltype(width)::value; ++v) {
            const Vec gap = absolute(load(state.row_sums + at + v * kLanes) - aim);
            worst[v] = select(gap > worst[v], gap, worst[v]);
        }
    });
    for (int v = 1; v < kBlock; ++v) worst[0] = select(worst[v] > worst[0], worst[v], worst[0]);
    const double size = largest(worst[0]);
    for (size_t at = 0; at < n; at += kLanes) {
        const Bits found = absolute(load(state.row_sums + at) - aim) == size;
        if (!any(found)) continue;
        for (size_t k = 0; k < size_t(kLanes); ++k)
            if (found[k]) return {size, at + k};
    }
    return {size, 0};
}

// Peak and Σ exp(line - peak) of `count` logarithms, each the sum of two arrays.
struct Mass {
    double peak, total;
};

inline Mass mass_of(const double* logs, const double* potentials, size_t count) {
    Vec peaks = all(-__builtin_inf()), total[kBlock] = {};
    for (size_t i = 0; i < count; i += kLanes) {
        const Vec line = load(logs + i) + load(potentials + i);
        peaks = select(line > peaks, line, peaks);
    }
    const double peak = largest(peaks);
    if (peak == -__builtin_inf()) return {peak, 0.0};
    each_block(count, [&](auto width, size_t at) {
        for (int v = 0; v < decltype(width)::value; ++v)
            total[v] += exp<true>(load(logs + at + v * kLanes) + load(potentials + at + v * kLanes) - peak);
    });
    return {peak, sum((total[0] + total[1]) + (total[2] + total[3]))};
}

// sums += exp(line + after) - exp(line + before): what the crossing lines gain.
inline void move_sums(const double* logs, const double* potentials, size_t count, double before, double after,
                      double* sums) {
    each_block(count, [&](auto width, size_t at) {
        for (int v = 0; v < decltype(width)::value; ++v) {
            const size_t here = at + v * kLanes;
            const Vec line = load(logs + here) + load(potentials + here);
            store(sums + here, load(sums + here) + (exp<true>(line + after) - exp<true>(line + before)));
        }
    });
}

inline void rescale_column(const Greedy& state, size_t j) {
    const LabelTask& task = *state.task;
    const double* logs = task.P + j * task.ld;
    const Mass mass = mass_of(logs, state.rows, task.n);
    if (mass.peak == -__builtin_inf()) {
        state.column_sums[j] = state.aims[j] = 0.0;
        return;
    }
    const double potential = __builtin_log(state.aims[j]) - (mass.peak + __builtin_log(mass.total));
    move_sums(logs, state.rows, task.n, state.columns[j], potential, state.row_sums);
    state.columns[j] = potential;
    state.column_sums[j] = state.aims[j];
}

inline void rescale_row(const Greedy& state, size_t i) {
    const LabelTask& task = *state.task;
    const double aim = 1.0 / double(task.n);
    for (size_t j = 0; j < task.c; ++j) state.line[j] = task.P[j * task.ld + i];
    const Mass mass = mass_of(state.line, state.columns, task.c);
    state.row_sums[i] = aim;
    if (mass.peak == -__builtin_inf()) return;
    const double potential = __builtin_log(aim) - (mass.peak + __builtin_log(mass.total));
    move_sums(state.line, state.columns, task.c, state.rows[i], potential, state.column_sums);
    state.rows[i] = potential;
}

// P <- exp(logs + rows + columns).
inline void write_plan(const Greedy& state) {
    const LabelTask& task = *state.task;
    for (size_t j = 0; j < task.c; ++j) {
        double* column = task.P + j * task.ld;
        each_block(task.n, [&](auto width, size_t at) {
            for (int v = 0; v < decltype(width)::value; ++v) {
                const size_t here = at + v * kLanes;
                store(column + here, exp<true>(load(column + here) + load(state.rows + here) + state.columns[j]));
            }
        });
    }
    fill_padding(task, 0.0);
}

// Rows start at exactly 1, which they are by construction: computed sums differ in the last bit and would break ties
// at random. Padding starts at its aim and holds -inf, so it never moves and never wins.
inline void greenkhorn(const Greedy& state) {
    const LabelTask& task = *state.task;
    for (size_t i = 0; i < task.ld; ++i) {
        state.rows[i] = 0.0;
        state.row_sums[i] = i < task.n ? 1.0 : 1.0 / double(task.n);
    }
    for (size_t j = 0; j < state.width; ++j) {
        state.columns[j] = 0.0;
        state.line[j] = -__builtin_inf();
    }
    for (size_t j = 0; j < task.c; ++j)
        if (state.column_sums[j] == 0 && mass_of(task.P + j * task.ld, state.rows, task.n).peak == -__builtin_inf())
            state.aims[j] = 0.0;  // impossible for every image, not only beyond what exp can hold
    for (int64_t done = 0; done < task.iters; ++done) {
        const Gap row = furthest_row(state), column = furthest_column(state);
        if (row.size <= 0 && column.size <= 0) break;
        if (column.size > row.size)
            rescale_column(state, column.index);
        else
            rescale_row(state, row.index);
    }
    write_plan(state);
}

}  // namespace
}  // namespace KPL_ISA
}  // namespace kpl
