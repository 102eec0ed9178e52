// What the dual form works on: the features in float64, K = X Xᵀ in panels, and Z = X W.
//
// K is kept as panels of kPanel columns, each (n, panel) in one piece: a product then reads it from end to end. Only the
// part from the diagonal down is computed (n² d flops), the rest is its mirror image, so that K is symmetric to the bit.
#pragma once

#include "core.h"
#include "product.h"
#include "steps.h"

namespace kpl {
namespace KPL_ISA {
namespace {

struct DualRange {
    size_t first, last;  // panels of this member
};

inline DualRange share(size_t panels, const Member& member) {
    return {panels * member.index / member.count, panels * (member.index + 1) / member.count};
}

// Vectors in panel p; the last panel may be narrower.
inline int panel_vectors(size_t n, size_t p) {
    const size_t rows = n - p * kPanel < kPanel ? n - p * kPanel : kPanel;
    return int((rows + kLanes - 1) / kLanes);
}

template <typename Number>
void widen_rows(const DualTask& task, size_t first, size_t last) {
    const Number* data = static_cast<const Number*>(task.X.data);
    for (size_t i = first; i < last; ++i) {
        const Number* row = data + ptrdiff_t(i) * task.X.row_stride;
        double* out = task.features + i * task.ldw;
        if (task.X.column_stride == 1) {
            size_t k = 0;
            for (; k + kLanes <= task.d; k += kLanes) store(out + k, load(row + k));
            for (; k < task.d; ++k) out[k] = double(row[k]);
        } else {
            for (size_t k = 0; k < task.d; ++k) out[k] = double(row[ptrdiff_t(k) * task.X.column_stride]);
        }
        for (size_t k = task.d; k < task.ldw; ++k) out[k] = 0.0;
    }
}

inline void prepare(const DualTask& task, const Member& member) {
    const size_t first = task.n * member.index / member.count, last = task.n * (member.index + 1) / member.count;
    if (task.X.is_float32)
        widen_rows<float>(task, first, last);
    else
        widen_rows<double>(task, first, last);
    meet(member);
}

// Rows k .. k+depth of one panel of Xᵀ, zeros beyond the last image.
inline void pack_panel(const DualTask& task, size_t p, int vectors, size_t k, size_t depth, double* out) {
    const size_t width = size_t(vectors) * kLanes;
    for (size_t v = 0; v < width; ++v) {
        const size_t i = p * kPanel + v;
        if (i < task.n) {
            const double* row = task.features + i * task.ldw + k;
            for (size_t l = 0; l < depth; ++l) out[l * width + v] = row[l];
        } else {
            for (size_t l = 0; l < depth; ++l) out[l * width + v] = 0.0;
        }
    }
}

// Z = X W for the rows of this member, and with it the member's panels of K from the diagonal down.
inline void project(const DualTask& task, const Member& member, bool with_gram) {
    double* pack = task.pack + size_t(member.index) * kDepth * kPanel;
    // Panel p of K needs n - p kPanel rows: dealt out in turn, for the first panels cost most.
    for (size_t p = size_t(member.index); p < task.panels; p += size_t(member.count)) {
        const int vectors = panel_vectors(task.n, p);
        const size_t width = size_t(vectors) * kLanes, start = p * kPanel;
        double* K = task.K + start * task.n;
        for (size_t k = 0; k < task.d; k += kDepth) {
            const size_t depth = task.d - k < kDepth ? task.d - k : kDepth;
            pack_panel(task, p, vectors, k, depth, pack);
            multiply(vectors, pack, width, depth, task.W + k, task.ldw, task.c, task.Z + start, task.ld, k > 0);
            if (with_gram)
                multiply(vectors, pack, width, depth, task.features + start * task.ldw + k, task.ldw, task.n - start,
                         K + start * width, width, k > 0);
        }
    }
}

// The rows of K above the diagonal panels, from their mirror images.
inline void mirror_gram(const DualTask& task, const Member& member) {
    for (size_t p = size_t(member.index); p < task.panels; p += size_t(member.count)) {
        const size_t width = size_t(panel_vectors(task.n, p)) * kLanes, start = p * kPanel;
        double* K = task.K + start * task.n;
        for (size_t q = 0; q < p; ++q) {  // panels before p are full
            const double* source = task.K + q * kPanel * task.n + start * kPanel;
            for (size_t u = 0; u < kPanel; ++u)
                for (size_t v = 0; v < width; ++v)
                    K[(q * kPanel + u) * width + v] = start + v < task.n ? source[v * kPanel + u] : 0.0;
        }
    }
}

}  // namespace
}  // namespace KPL_ISA
}  // namespace kpl
