// Pseudo labels and text proxies. All outputs are arrays of the caller.
#include <nanobind/stl/optional.h>

#include <optional>
#include <string_view>

#include "bind.h"
#include "refine.h"

namespace nb = nanobind;

namespace kpl {
namespace {

using Numbers = nb::ndarray<const double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Offsets = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Embeddings = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Labels = nb::ndarray<nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Scores = nb::ndarray<double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Indices = nb::ndarray<int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Proxies = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

LabelMethod method_of(std::string_view name) {
    if (name == "softmax") return LabelMethod::softmax;
    if (name == "sinkhorn") return LabelMethod::sinkhorn;
    if (name == "stable_greenkhorn") return LabelMethod::stable_greenkhorn;
    if (name == "stream") return LabelMethod::stream;
    throw nb::value_error("method: expected 'softmax', 'sinkhorn', 'stable_greenkhorn' or 'stream'");
}

bool refine(const AnyMatrix& S, const Labels& labels, const char* method, double tau_t, double gamma, int64_t iters,
            const std::optional<Numbers>& prior) {
    const bool narrow = labels.dtype() == nb::dtype<float>();
    if (!narrow && labels.dtype() != nb::dtype<double>()) throw nb::type_error("labels: expected float32 or float64");
    const size_t n = S.shape(0), c = S.shape(1);
    expect_shape(n > 0 && c > 0, "similarities: expected no empty axis");
    expect_shape(labels.shape(0) == n && labels.shape(1) == c, "labels: expected the shape of similarities");
    expect_shape(!prior || prior->shape(0) == c, "prior: expected (c,)");
    expect_shape(iters >= kConverged, "iters: expected -1 (converged) or a count");
    const LabelCall call = {n,     c,     matrix_of(S, "similarities"),     method_of(method), tau_t,
                            gamma, iters, prior ? prior->data() : nullptr, labels.data(),     narrow};
    const nb::gil_scoped_release release;
    return refine_labels(call);
}

void check_offsets(const Offsets& offsets, size_t num_rows) {
    expect_shape(offsets.shape(0) > 1 && offsets(0) == 0 && offsets(offsets.shape(0) - 1) == int64_t(num_rows),
                 "offsets: expected 0 .. M for at least one class");
    for (size_t j = 1; j < offsets.shape(0); ++j)
        expect_shape(offsets(j - 1) < offsets(j), "offsets: expected at least one row a class");
}

size_t kept_count(const Offsets& offsets, size_t k) {
    size_t total = 0;
    for (size_t j = 1; j < offsets.shape(0); ++j) {
        const size_t rows = size_t(offsets(j) - offsets(j - 1));
        total += rows < k ? rows : k;
    }
    return total;
}

Matrix narrow_matrix(const AnyMatrix& X, int threads) {
    const Matrix matrix = matrix_of(X, "features");
    if (!matrix.is_float32) throw nb::type_error("features: expected float32");
    expect_shape(X.shape(0) > 0 && X.shape(1) > 0, "features: expected no empty axis");
    expect_shape(threads > 0, "threads: expected at least 1");
    return matrix;
}

bool select(const AnyMatrix& X, const Embeddings& E, const Offsets& offsets, size_t k, double longest, int threads,
            const Scores& scores, const Indices& kept, const Proxies& T) {
    const Matrix features = narrow_matrix(X, threads);
    const size_t n = X.shape(0), d = X.shape(1), c = offsets.shape(0) - 1;
    check_offsets(offsets, E.shape(0));
    expect_shape(E.shape(1) == d, "embeddings: expected (M, d) with the d of features");
    expect_shape(k > 0 && scores.shape(0) == E.shape(0), "scores: expected (M,), and k of at least 1");
    expect_shape(kept.shape(0) == kept_count(offsets, k), "kept: expected min(k, m_j) entries a class");
    expect_shape(T.shape(0) == d && T.shape(1) == c, "proxies: expected (d, c)");
    const TextCall call = {n,       d,       c,             features,    E.data(), offsets.data(), k,
                           longest, threads, scores.data(), kept.data(), T.data()};
    const nb::gil_scoped_release release;
    return select_text_proxies(call);
}

bool fit(const AnyMatrix& X, double longest, int threads) {
    const Matrix features = narrow_matrix(X, threads);
    const size_t n = X.shape(0), d = X.shape(1);
    const nb::gil_scoped_release release;
    return rows_fit(features, n, d, longest, threads);
}

}  // namespace

void bind_labels(nb::module_& m) {
    m.def("refine_labels", refine, nb::arg("similarities"), nb::arg("labels").noconvert(), nb::arg("method"),
          nb::arg("tau_t"), nb::arg("gamma"), nb::arg("iters"), nb::arg("prior").none(),
          "Fills labels (n, c) float32 or float64. iters = -1 is the converged plan; the prior sums to 1.\n\n"
          "Whether similarities are free of NaN. If not, nothing is written, except by softmax: NaN in those rows.");
    m.def("select_text_proxies", select, nb::arg("features"), nb::arg("embeddings").noconvert(), nb::arg("offsets"),
          nb::arg("k"), nb::arg("longest"), nb::arg("threads"), nb::arg("scores").noconvert(),
          nb::arg("kept").noconvert(), nb::arg("proxies").noconvert(),
          "Fills scores (M,), kept (sum of min(k, m_j),) and proxies (d, c).\n\n"
          "False when a row of features is not finite or longer than `longest`: the results are then worthless.");
    m.def("rows_fit", fit, nb::arg("features"), nb::arg("longest"), nb::arg("threads"),
          "Whether every row of features (n, d) float32 is finite and at most `longest` in length.");
}

}  // namespace kpl
