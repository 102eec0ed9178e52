#include <cmath>

#include "refine.h"
#include "storage.h"

namespace kpl {

namespace {

// S to (c, ld); whether it holds NaN.
template <typename Number>
bool load_similarities(const LabelCall& call, double* S, size_t ld) {
    const Number* data = static_cast<const Number*>(call.S.data);
    bool has_nan = false;
    for (size_t i = 0; i < call.n; ++i) {
        const Number* row = data + ptrdiff_t(i) * call.S.row_stride;
        for (size_t j = 0; j < call.c; ++j) {
            const double value = double(row[ptrdiff_t(j) * call.S.column_stride]);
            has_nan |= std::isnan(value);
            S[j * ld + i] = value;
        }
    }
    return has_nan;
}

template <typename Number>
void store_labels(const LabelCall& call, const double* P, size_t ld) {
    Number* labels = static_cast<Number*>(call.labels);
    for (size_t i = 0; i < call.n; ++i)
        for (size_t j = 0; j < call.c; ++j) labels[i * call.c + j] = Number(P[j * ld + i]);
}

}  // namespace

// Potentials and sums of the rows, then six arrays over classes, the last of one vector a class; see labels.h.
size_t label_work(size_t c, size_t ld) { return 2 * ld + 5 * round_up(c, 8) + 8 * c; }

bool refine_labels(const LabelCall& call) {
    const Kernels& table = kernels();
    // A power-of-two distance between classes would put them all into the same few lines of a cache.
    const size_t whole = round_up(call.n, table.lanes), ld = whole % 256 == 0 ? whole + table.lanes : whole;
    Storage storage;
    const size_t labels = storage.add(call.c, ld), work = storage.add(1, label_work(call.c, ld));
    storage.allocate();
    double* P = storage.at(labels);
    const auto load = call.S.is_float32 ? load_similarities<float> : load_similarities<double>;
    const bool has_nan = load(call, P, ld);
    if (has_nan && call.method != LabelMethod::softmax) return false;
    table.refine({call.n, call.c, ld, call.method, call.tau_t, call.gamma, call.iters, call.prior, P, P,
                  storage.at(work)});
    call.labels_are_float32 ? store_labels<float>(call, P, ld) : store_labels<double>(call, P, ld);
    return !has_nan;
}

}  // namespace kpl
