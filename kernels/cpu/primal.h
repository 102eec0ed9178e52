// The published schedule as published, W <- unit columns of W - eta Xᵀ(softmax(X W / tau_i) - P), all steps in one
// call: for images too many for K, and few classes (many classes are BLAS's business, solver/schedule.py).
//
// A step costs 4 n d (c-1) flops and one pass over X (4 n d bytes of float32): rows are taken in blocks that are
// still in cache when the second product comes. Products run over c-1 columns: the softmax needs only the differences
// W_j - W_c, and the columns of G add up to Xᵀ(1 - Σ_j P_j), known before the first step.
//
// Members share the blocks; each adds up its own gradient, and these are added in the order of the members. Another
// number of members hence rounds differently.
#pragma once

#include "core.h"
#include "dots.h"
#include "product.h"
#include "steps.h"

namespace kpl {
namespace KPL_ISA {
namespace {

// Rows of one block as the products want them: as they lie if that is unit stride and whole vectors, else widened
// into `copy` (rows, ldw) with zeros in the padding.
inline const double* widen_block(const PrimalTask& task, size_t first, size_t rows, double* copy) {
    for (size_t i = 0; i < rows; ++i)
        for (size_t k = 0; k < task.ldw; ++k) {
            const ptrdiff_t at = ptrdiff_t(first + i) * task.X.row_stride + ptrdiff_t(k) * task.X.column_stride;
            copy[i * task.ldw + k] = k >= task.d            ? 0.0
                                     : task.X.is_float32 ? double(static_cast<const float*>(task.X.data)[at])
                                                         : static_cast<const double*>(task.X.data)[at];
        }
    return copy;
}

inline bool lies_well(const PrimalTask& task) { return task.X.column_stride == 1 && task.d == task.ldw; }

// `function(rows of the block, their stride)`.
template <typename Function>
inline void with_block(const PrimalTask& task, size_t first, size_t rows, double* copy, Function function) {
    const ptrdiff_t stride = task.X.row_stride;
    if (!lies_well(task))
        function(widen_block(task, first, rows, copy), ptrdiff_t(task.ldw));
    else if (task.X.is_float32)
        function(static_cast<const float*>(task.X.data) + ptrdiff_t(first) * stride, stride);
    else
        function(static_cast<const double*>(task.X.data) + ptrdiff_t(first) * stride, stride);
}

// From exponents z_j - z_c in R (c-1, block) to residuals in place; V vectors of images at `at`.
inline void residual_differences(const PrimalTask& task, size_t first, size_t at, double* R) {
    const Vec scale = all(1.0 / task.options.tau_i);
    Vec base = {}, total;
    if (task.shift)
        for (size_t j = 0; j + 1 < task.c; ++j) {
            const Vec z = load(R + j * task.block + at);
            base = select(z > base, z, base);
        }
    total = task.shift ? exp<false>((Vec{} - base) * scale) : all(1.0);
    for (size_t j = 0; j + 1 < task.c; ++j) {
        const Vec power = exp<false>((load(R + j * task.block + at) - base) * scale);
        store(R + j * task.block + at, power);
        total += power;
    }
    const Vec inverse = 1.0 / total;
    for (size_t j = 0; j + 1 < task.c; ++j)
        store(R + j * task.block + at,
              load(R + j * task.block + at) * inverse - load(task.P + j * task.ldp + first + at));
}

// The second product: G_j += Σ_i R_ij x_i over the rows of one block.
template <typename Number>
void add_gradient(const PrimalTask& task, const Number* X, ptrdiff_t stride, size_t rows, const double* R, double* G) {
    for (size_t at = 0; at < task.ldw; at += kPanel) {
        const size_t width = task.ldw - at < kPanel ? task.ldw - at : kPanel;
        multiply(int(width / kLanes), X + at, size_t(stride), rows, R, task.block, task.c - 1, G + at, task.ldw, true);
    }
}

struct PrimalWork {
    double *V, *R, *copy;
};

inline PrimalWork work_of(const PrimalTask& task, const Member& member) {
    double* work = task.work + size_t(member.index) * task.work_size;
    return {work, work + task.c * task.ldw, work + task.c * (task.ldw + task.block)};
}

inline size_t block_count(const PrimalTask& task) { return (task.n + task.block - 1) / task.block; }

// The gradient of this member's rows, c-1 columns.
inline void gradient(const PrimalTask& task, const Member& member) {
    const PrimalWork work = work_of(task, member);
    const size_t columns = task.c - 1, blocks = block_count(task);
    double* G = task.G + size_t(member.index) * task.c * task.ldw;
    const double* last = task.W + columns * task.ldw;
    for (size_t j = 0; j < columns; ++j)
        for (size_t k = 0; k < task.ldw; k += kLanes) {
            store(work.V + j * task.ldw + k, load(task.W + j * task.ldw + k) - load(last + k));
            store(G + j * task.ldw + k, Vec{});
        }
    for (size_t b = blocks * member.index / member.count; b < blocks * (member.index + 1) / member.count; ++b) {
        const size_t first = b * task.block, rows = task.n - first < task.block ? task.n - first : task.block;
        with_block(task, first, rows, work.copy, [&](auto* X, ptrdiff_t stride) {
            dot_columns(X, stride, rows, work.V, task.ldw, columns, task.ldw, work.R, task.block);
            for (size_t at = 0; at < rows; at += kLanes) residual_differences(task, first, at, work.R);
            add_gradient(task, X, stride, rows, work.R, G);
        });
    }
}

// What the columns of G add up to, Xᵀ(1 - Σ_j P_j), in `rest` (ldw): made once, by the first member.
inline void gradient_total(const PrimalTask& task, const Member& member) {
    const PrimalWork work = work_of(task, member);
    for (size_t k = 0; k < task.ldw; ++k) task.rest[k] = 0.0;
    for (size_t b = 0; b < block_count(task); ++b) {
        const size_t first = b * task.block, rows = task.n - first < task.block ? task.n - first : task.block;
        for (size_t i = 0; i < rows; ++i) {
            work.R[i] = 1.0;
            for (size_t j = 0; j < task.c; ++j) work.R[i] -= task.P[j * task.ldp + first + i];
        }
        with_block(task, first, rows, work.copy, [&](auto* X, ptrdiff_t stride) {
            for (size_t i = 0; i < rows; ++i)
                for (size_t k = 0; k < task.ldw; k += kLanes)
                    store(task.rest + k, load(task.rest + k) + all(work.R[i]) * load(X + ptrdiff_t(i) * stride + k));
        });
    }
}

struct Segment {
    size_t first, last;  // entries of every column that this member adds up and moves
};

inline Segment segment(const PrimalTask& task, const Member& member) {
    const size_t vectors = task.ldw / kLanes;
    return {vectors * member.index / member.count * kLanes, vectors * (member.index + 1) / member.count * kLanes};
}

// next <- G, the sum over members with the last column put back; ‖G‖² of the segment.
inline double collect(const PrimalTask& task, const Member& member, Segment own) {
    const size_t size = task.c * task.ldw;
    Vec squares = {};
    for (size_t k = own.first; k < own.last; k += kLanes) {
        Vec rest = load(task.rest + k);
        for (size_t j = 0; j + 1 < task.c; ++j) {
            Vec total = load(task.G + j * task.ldw + k);
            for (int other = 1; other < member.count; ++other)
                total += load(task.G + size_t(other) * size + j * task.ldw + k);
            rest -= total;
            squares += total * total;
            store(task.next + j * task.ldw + k, total);
        }
        squares += rest * rest;
        store(task.next + (task.c - 1) * task.ldw + k, rest);
    }
    return sum(squares);
}

// next <- W - eta next; the squared lengths of the segment of each column.
inline void step_along(const PrimalTask& task, Segment own, double eta, double* squares) {
    for (size_t j = 0; j < task.c; ++j) {
        Vec total = {};
        for (size_t k = own.first; k < own.last; k += kLanes) {
            const size_t here = j * task.ldw + k;
            const Vec moved = load(task.W + here) - all(eta) * load(task.next + here);
            store(task.next + here, moved);
            total += moved * moved;
        }
        squares[j] = sum(total);
    }
}

// W <- next to unit length; whether a bit of the segment changed. A column that vanished stays as it was.
inline bool take_step(const PrimalTask& task, const Member& member, Segment own) {
    Bits changed = {};
    for (size_t j = 0; j < task.c; ++j) {
        double length = 0.0;
        for (int other = 0; other < member.count; ++other) length += task.norms[size_t(other) * (task.c + 8) + j];
        length = __builtin_sqrt(length);
        if (length == 0.0) continue;
        for (size_t k = own.first; k < own.last; k += kLanes) {
            const size_t here = j * task.ldw + k;
            const Vec old = load(task.W + here), unit = load(task.next + here) / length;
            changed |= unit != old;
            store(task.W + here, unit);
        }
    }
    return any(changed);
}

// Z = X W, all columns, image by image.
inline void write_logits(const PrimalTask& task, const Member& member) {
    const PrimalWork work = work_of(task, member);
    const size_t blocks = block_count(task);
    for (size_t b = blocks * member.index / member.count; b < blocks * (member.index + 1) / member.count; ++b) {
        const size_t first = b * task.block, rows = task.n - first < task.block ? task.n - first : task.block;
        with_block(task, first, rows, work.copy, [&](auto* X, ptrdiff_t stride) {
            dot_columns(X, stride, rows, task.W, task.ldw, task.c, task.ldw, work.R, task.block);
        });
        for (size_t i = 0; i < rows; ++i)
            for (size_t j = 0; j < task.c; ++j) task.Z[(first + i) * task.c + j] = work.R[j * task.block + i];
    }
}

inline void similarities(const PrimalTask& task, double* S, size_t ld) {
    for (size_t b = 0; b < block_count(task); ++b) {
        const size_t first = b * task.block, rows = task.n - first < task.block ? task.n - first : task.block;
        with_block(task, first, rows, task.work, [&](auto* X, ptrdiff_t stride) {
            dot_columns(X, stride, rows, task.W, task.ldw, task.c, task.ldw, S + first, ld);
        });
    }
}

// `function(slice)` for the slices that this member of the crew takes; a slice looks like a member of its own.
template <typename Function>
void for_slices(const PrimalTask& task, const Member& crew, Function function) {
    for (int slice = crew.index; slice < task.slices; slice += crew.count)
        function(Member{slice, task.slices, nullptr});
}

inline double* norms_of(const PrimalTask& task, int slice) { return task.norms + size_t(slice) * (task.c + 8); }

template <typename Tick>
void primal_step(const PrimalTask& task, const Member& crew, Progress& at, Tick tick) {
    for_slices(task, crew, [&](const Member& slice) { gradient(task, slice); });
    meet(crew);
    for_slices(task, crew, [&](const Member& slice) {
        norms_of(task, slice.index)[task.c] = collect(task, slice, segment(task, slice));
    });
    meet(crew);
    double squares = 0.0;
    for (int slice = 0; slice < task.slices; ++slice) squares += norms_of(task, slice)[task.c];
    const double eta = next_step(at.step, __builtin_sqrt(squares));
    at.frozen = is_frozen(at.step, task.options, at.done);
    if (at.frozen) return;
    for_slices(task, crew, [&](const Member& slice) {
        step_along(task, segment(task, slice), eta, norms_of(task, slice.index));
    });
    meet(crew);
    for_slices(task, crew, [&](const Member& slice) {
        task.changed[slice.index * 8] = take_step(task, slice, segment(task, slice));
    });
    tick();
    meet(crew);
    bool changed = !task.options.early_exit;
    for (int slice = 0; slice < task.slices; ++slice) changed |= task.changed[slice * 8] != 0;
    at.settled = !changed;
    ++at.done;
}

inline void run_primal(PrimalTask& task, const Member& member) {
    Progress at = {first_step(task.options, task.n, task.c, task.longest), 0, false, false};
    if (member.index == 0) {
        task.lead = &at;
        gradient_total(task, member);
    }
    meet(member);
    run_bursts(
        *task.pace, member, task.options, at, task.changed + 1, [&] { at = *static_cast<const Progress*>(task.lead); },
        [&](const Member& crew, auto tick) { primal_step(task, crew, at, tick); });
    meet(member);
    write_logits(task, member);
    if (member.index == 0)
        task.result = {at.done, at.step.halvings, at.step.norm, at.step.last_change, at.settled, at.frozen};
}

}  // namespace
}  // namespace KPL_ISA
}  // namespace kpl
