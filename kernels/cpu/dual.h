// The published schedule in the span of the images (docs/method.md 3a), all steps in one call.
//
//   H = K R,  eta = lr / (n tau_i),  s_j² = ‖w_j‖² - 2 eta Σ_i Z_ij R_ij + eta² Σ_i R_ij H_ij
//   Z <- (Z - eta H) / s,   A <- (A - eta R) / s,   t <- t / s,   W = T diag(t) + Xᵀ A
//
// A step costs 2 n² (c-1) flops, c-1 exponentials an image, and one pass over K (8 n² bytes) and over five (c, n)
// arrays. Only c-1 columns of H are multiplied: the columns of R add up to 1 - Σ_j P_ij in every step, so the columns
// of H add up to a vector known before the first. Two classes hence cost one matrix-vector product.
//
// Members share the rows by panels and meet twice a step: when all of H and the partial sums are there, and when all
// of R is. Sums over images are made panel by panel and added in the order of the panels, so every number of members
// gives the same bits.
#pragma once

#include "gram.h"

namespace kpl {
namespace KPL_ISA {
namespace {

// R = softmax(Z / tau_i) - P for V vectors of images at `at`; zeros beyond the last image.
template <int V>
void residual(const DualTask& task, size_t at) {
    const size_t ld = task.ld, last = (task.c - 1) * ld + at;
    const Vec scale = all(1.0 / task.options.tau_i);
    Vec base[V], total[V];
    for (int v = 0; v < V; ++v) base[v] = load(task.Z + last + v * kLanes);
    if (task.shift) {
        for (size_t j = 0; j + 1 < task.c; ++j)
            for (int v = 0; v < V; ++v) {
                const Vec z = load(task.Z + j * ld + at + v * kLanes);
                base[v] = select(z > base[v], z, base[v]);
            }
        for (int v = 0; v < V; ++v) total[v] = exp<false>((load(task.Z + last + v * kLanes) - base[v]) * scale);
    } else {
        for (int v = 0; v < V; ++v) total[v] = all(1.0);
    }
    Vec final_power[V];
    for (int v = 0; v < V; ++v) final_power[v] = total[v];
    for (size_t j = 0; j + 1 < task.c; ++j)
        for (int v = 0; v < V; ++v) {
            const size_t here = j * ld + at + v * kLanes;
            const Vec power = exp<false>((load(task.Z + here) - base[v]) * scale);
            store(task.R + here, power);
            total[v] += power;
        }
    for (int v = 0; v < V; ++v) total[v] = 1.0 / total[v];
    for (size_t j = 0; j + 1 < task.c; ++j)
        for (int v = 0; v < V; ++v) {
            const size_t here = j * ld + at + v * kLanes;
            store(task.R + here, load(task.R + here) * total[v] - load(task.P + here));
        }
    for (int v = 0; v < V; ++v)
        store(task.R + last + v * kLanes, final_power[v] * total[v] - load(task.P + last + v * kLanes));
    for (size_t i = task.n < at ? at : task.n; i < at + V * kLanes; ++i)
        for (size_t j = 0; j < task.c; ++j) task.R[j * ld + i] = 0.0;
}

// The last column of H, and per class Σ R∘H and Σ Z∘R over the images of one panel.
template <int V>
void finish_product(const DualTask& task, size_t p) {
    const size_t ld = task.ld, at = p * kPanel;
    double* partial = task.partial + p * 3 * task.c;
    Vec rest[V];
    for (int v = 0; v < V; ++v) rest[v] = load(task.rest + at + v * kLanes);
    for (size_t j = 0; j < task.c; ++j) {
        Vec rh = {}, zr = {}, size = {};
        for (int v = 0; v < V; ++v) {
            const size_t here = j * ld + at + v * kLanes;
            Vec h;
            if (j + 1 < task.c) {
                h = load(task.H + here);
                rest[v] -= h;
            } else {
                h = rest[v];
                store(task.H + here, h);
            }
            const Vec r = load(task.R + here);
            rh += r * h;
            size += absolute(r * h);
            zr += r * load(task.Z + here);
        }
        partial[3 * j] = sum(rh);
        partial[3 * j + 1] = sum(zr);
        partial[3 * j + 2] = sum(size);
    }
}

// Z <- (Z - eta H) / s and A <- (A - eta R) / s; the bits that changed.
template <int V>
Bits move(const DualTask& task, size_t at, const double* etas, const double* inverses) {
    Bits changed = {};
    for (size_t j = 0; j < task.c; ++j) {
        const Vec eta = all(etas[j]), inverse = all(inverses[j]);
        for (int v = 0; v < V; ++v) {
            const size_t here = j * task.ld + at + v * kLanes;
            const Vec z = load(task.Z + here), a = load(task.A + here);
            const Vec new_z = (z - eta * load(task.H + here)) * inverse;
            const Vec new_a = (a - eta * load(task.R + here)) * inverse;
            changed |= (new_z != z) | (new_a != a);
            store(task.Z + here, new_z);
            store(task.A + here, new_a);
        }
    }
    return changed;
}

template <int V>
void product_panel(const DualTask& task, size_t p) {
    multiply(V, task.K + p * kPanel * task.n, size_t(V) * kLanes, task.n, task.R, task.ld, task.c - 1,
             task.H + p * kPanel, task.ld, false);
    finish_product<V>(task, p);
}

template <int V>
Bits move_panel(const DualTask& task, size_t p, const double* etas, const double* inverses) {
    const Bits changed = move<V>(task, p * kPanel, etas, inverses);
    residual<V>(task, p * kPanel);
    return changed;
}

// `function(width, p)` for each panel p of the range, its number of vectors a constant.
template <typename Function>
inline void for_panels(const DualTask& task, DualRange range, Function function) {
    for (size_t p = range.first; p < range.last; ++p)
        with_width(panel_vectors(task.n, p), [&](auto width) { function(width, p); });
}

inline void product_panels(const DualTask& task, DualRange range) {
    for_panels(task, range, [&](auto width, size_t p) { product_panel<decltype(width)::value>(task, p); });
}

inline bool move_panels(const DualTask& task, DualRange range, const double* etas, const double* inverses) {
    Bits changed = {};
    for_panels(task, range, [&](auto width, size_t p) {
        changed |= move_panel<decltype(width)::value>(task, p, etas, inverses);
    });
    return any(changed);
}

inline void residual_panels(const DualTask& task, DualRange range) {
    for_panels(task, range, [&](auto width, size_t p) { residual<decltype(width)::value>(task, p * kPanel); });
}

inline double squared_length(const double* w, size_t ldw) {
    Vec total = {};
    for (size_t k = 0; k < ldw; k += kLanes) total += load(w + k) * load(w + k);
    return sum(total);
}

// W <- W diag(t) + Xᵀ A, columns scaled to the squared lengths given. Members share the columns of X.
inline void combine(const DualTask& task, const Member& member, const double* t, const double* squared) {
    const size_t segments = (task.ldw + kPanel - 1) / kPanel;
    for (size_t s = size_t(member.index); s < segments; s += size_t(member.count)) {
        const size_t at = s * kPanel, width = task.ldw - at < kPanel ? task.ldw - at : kPanel;
        for (size_t j = 0; j < task.c; ++j)
            for (size_t k = at; k < at + width; ++k) task.W[j * task.ldw + k] *= t[j];
        multiply(int(width / kLanes), task.features + at, task.ldw, task.n, task.A, task.ld, task.c, task.W + at,
                 task.ldw, true);
    }
    meet(member);
    for (size_t j = size_t(member.index); j < task.c; j += size_t(member.count)) {
        double* w = task.W + j * task.ldw;
        const double length = squared_length(w, task.ldw);
        const double scale = __builtin_sqrt(squared[j] / (length > 0 ? length : 1.0));
        for (size_t k = 0; k < task.ldw; ++k) w[k] *= scale;
    }
    meet(member);
}

// What each member keeps of the columns, in its own memory: every member computes the same numbers.
struct Columns {
    double *squared, *t, *etas, *inverses;
    double drift;
    bool changed;
};

// Σ R∘H is ‖G‖² less the cancellation of its terms. Where images are nearly alike that leaves few digits or none, and
// the rule of the step size would be decided by rounding: then ‖G_j‖² is computed as it is written, from Xᵀ R.
constexpr double kFewDigits = 0.05;  // CLIP features give 0.2 to 1; images nearly alike 1e-4 to 1e-2

inline void squared_gradients(const DualTask& task, const Member& crew, double* squares) {
    const size_t segments = (task.ldw + kPanel - 1) / kPanel;
    for (size_t s = size_t(crew.index); s < segments; s += size_t(crew.count)) {
        const size_t at = s * kPanel, width = task.ldw - at < kPanel ? task.ldw - at : kPanel;
        multiply(int(width / kLanes), task.features + at, task.ldw, task.n, task.R, task.ld, task.c, task.G + at,
                 task.ldw, false);
    }
    meet(crew);
    for (size_t j = 0; j < task.c; ++j) squares[j] = squared_length(task.G + j * task.ldw, task.ldw);
}

// Lengths of the next step from the partial sums: s, eta per class, t and the bound of the drift. False, and nothing
// but `step` changed, if no step to come can matter.
inline bool plan_step(const DualTask& task, const Member& crew, StepSize& step, Columns& columns, int64_t done) {
    double total = 0.0, terms = 0.0;
    for (size_t j = 0; j < task.c; ++j) {
        double rh = 0.0, zr = 0.0;
        for (size_t p = 0; p < task.panels; ++p) {
            const double* partial = task.partial + (p * task.c + j) * 3;
            rh += partial[0];
            zr += partial[1];
            terms += partial[2];
        }
        total += rh;
        columns.etas[j] = rh;
        columns.inverses[j] = zr;
    }
    if (total < kFewDigits * terms) {
        squared_gradients(task, crew, columns.etas);
        total = 0.0;
        for (size_t j = 0; j < task.c; ++j) total += columns.etas[j];
    }
    const double eta = next_step(step, __builtin_sqrt(total > 0 ? total : total == total ? 0.0 : total));
    if (is_frozen(step, task.options, done)) return false;
    double drift = 0.0;
    columns.changed = false;
    for (size_t j = 0; j < task.c; ++j) {
        const double rh = columns.etas[j], squared = columns.squared[j];
        double length = squared - 2 * eta * columns.inverses[j] + eta * eta * rh;
        const bool moves = length > 0;  // a column that vanished keeps its previous direction
        if (!moves) length = 1.0;
        const double grown = (columns.drift + 1.0 + eta * eta * rh) / length;
        drift = grown > drift ? grown : drift;
        columns.etas[j] = moves ? eta : 0.0;
        columns.inverses[j] = 1.0 / __builtin_sqrt(length);
        const double t = columns.t[j] * columns.inverses[j];
        columns.changed |= t != columns.t[j];
        columns.t[j] = t;
        if (moves) columns.squared[j] = 1.0;
    }
    columns.drift = drift;
    return true;
}

// A <- 0, t <- 1, Z = X W, R: the state of a run that starts at W.
inline void begin_at_w(const DualTask& task, const Member& member, Columns& columns, bool with_gram) {
    project(task, member, with_gram);
    const DualRange range = share(task.panels, member);
    for (size_t j = 0; j < task.c; ++j) {
        columns.t[j] = 1.0;
        for (size_t i = range.first * kPanel; i < range.last * kPanel && i < task.ld; ++i) task.A[j * task.ld + i] = 0.0;
    }
    columns.drift = 1.0;
    meet(member);
    residual_panels(task, range);
    meet(member);
}

// rest = K (1 - Σ_j P_j); H's first row holds the vector, for there is no product yet.
inline void prepare_rest(const DualTask& task, const Member& member) {
    mirror_gram(task, member);
    const DualRange range = share(task.panels, member);
    for (size_t i = range.first * kPanel; i < range.last * kPanel && i < task.ld; ++i) {
        double total = 0.0;
        for (size_t j = 0; j < task.c; ++j) total += task.P[j * task.ld + i];
        task.H[i] = i < task.n ? 1.0 - total : 0.0;
    }
    meet(member);
    for (size_t p = range.first; p < range.last; ++p) {
        const int vectors = panel_vectors(task.n, p);
        multiply(vectors, task.K + p * kPanel * task.n, size_t(vectors) * kLanes, task.n, task.H, task.ld, 1,
                 task.rest + p * kPanel, task.ld, false);
    }
    meet(member);
}

struct DualLoop {
    Progress at;
    Columns columns;
};

// Stand where `lead` stands; t, ‖w_j‖² and the drift are all that a step takes over from the one before.
inline void follow_dual(const DualTask& task, const DualLoop& lead, DualLoop& loop) {
    loop.at = lead.at;
    loop.columns.drift = lead.columns.drift;
    for (size_t j = 0; j < task.c; ++j) {
        loop.columns.t[j] = lead.columns.t[j];
        loop.columns.squared[j] = lead.columns.squared[j];
    }
}

template <typename Tick>
void dual_step(const DualTask& task, const Member& crew, DualLoop& loop, Tick tick) {
    Columns& columns = loop.columns;
    Progress& at = loop.at;
    const DualRange range = share(task.panels, crew);
    product_panels(task, range);
    meet(crew);
    const double drift = columns.drift;
    at.frozen = !plan_step(task, crew, at.step, columns, at.done);
    if (at.frozen) return;
    task.changed[crew.index * 8] = move_panels(task, range, columns.etas, columns.inverses) || columns.changed;
    tick();
    meet(crew);
    bool changed = at.done == 0;  // the first step may yet bring ‖w_j‖² to 1
    for (int other = 0; other < crew.count; ++other) changed |= task.changed[other * 8] != 0;
    if (!changed) columns.drift = drift;  // nothing was rounded: early exit or not, no fresh start may follow
    at.settled = !changed && task.options.early_exit;
    ++at.done;
    if (columns.drift > task.options.max_drift) {  // after the last step too: Z is part of the result
        combine(task, crew, columns.t, columns.squared);
        begin_at_w(task, crew, columns, false);
    }
}

inline void run_dual(DualTask& task, const Member& member) {
    double* scalars = task.scalars + size_t(member.index) * 4 * task.c;
    DualLoop loop = {{first_step(task.options, task.n, task.c, task.longest), 0, false, false},
                     {scalars, scalars + task.c, scalars + 2 * task.c, scalars + 3 * task.c, 1.0, false}};
    if (member.index == 0) task.lead = &loop;
    prepare(task, member);
    for (size_t j = 0; j < task.c; ++j) loop.columns.squared[j] = squared_length(task.W + j * task.ldw, task.ldw);
    begin_at_w(task, member, loop.columns, true);
    prepare_rest(task, member);
    run_bursts(
        *task.pace, member, task.options, loop.at, task.changed + 1,
        [&] { follow_dual(task, *static_cast<const DualLoop*>(task.lead), loop); },
        [&](const Member& crew, auto tick) { dual_step(task, crew, loop, tick); });
    combine(task, member, loop.columns.t, loop.columns.squared);
    const Progress& at = loop.at;
    if (member.index == 0)
        task.result = {at.done, at.step.halvings, at.step.norm, at.step.last_change, at.settled, at.frozen};
}

}  // namespace
}  // namespace KPL_ISA
}  // namespace kpl
