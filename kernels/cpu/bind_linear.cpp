// The closed form and the finishing of a solution.
#include "bind.h"
#include "closed_form.h"

namespace nb = nanobind;

namespace kpl {
namespace {

template <typename Number, int axes>
using Out = nb::ndarray<Number, nb::ndim<axes>, nb::c_contig, nb::device::cpu>;

Images images_of(const AnyMatrix& X, int threads) {
    const Images images = {X.shape(0), X.shape(1), matrix_of(X, "X"), threads};
    expect_shape(images.n > 0 && images.d > 0, "X: expected no empty axis");
    expect_shape(images.X.column_stride == 1 || images.d == 1, "X: expected rows that lie in one piece");
    expect_shape(threads > 0, "threads: expected at least 1");
    return images;
}

double bound_moments(const AnyMatrix& X, const Rows& P, const Out<double, 1>& mean, const WritableRows& XtP,
                     int threads) {
    const Images images = images_of(X, threads);
    const size_t c = P.shape(1);
    expect_shape(P.shape(0) == images.n && c > 0, "P: expected (n, c)");
    expect_shape(mean.shape(0) == images.d, "mean: expected (d,)");
    expect_shape(XtP.shape(0) == c && XtP.shape(1) == images.d, "XtP: expected (c, d)");
    const nb::gil_scoped_release release;
    return moments(images, P.data(), c, mean.data(), XtP.data());
}

nb::tuple bound_fixed_point(const AnyMatrix& X, const Rows& P, const Vector& mean, const Rows& XtP,
                            const WritableRows& W, double tau_i, double tolerance, int max_corrections, int threads) {
    const FixedPointTask task = {images_of(X, threads), P.shape(1), P.data(),        mean.data(), XtP.data(),
                                 tau_i,                 tolerance,  max_corrections, W.data()};
    const size_t n = task.images.n, d = task.images.d, c = task.c;
    expect_shape(P.shape(0) == n && c > 0, "P: expected (n, c)");
    expect_shape(mean.shape(0) == d, "mean: expected (d,)");
    expect_shape(XtP.shape(0) == c && XtP.shape(1) == d, "XtP: expected (c, d)");
    if (!task.images.X.is_float32) throw nb::type_error("X: expected float32");
    expect_shape(W.shape(0) == d && W.shape(1) == c, "W: expected (d, c)");
    FixedPointResult result;
    {
        const nb::gil_scoped_release release;
        result = fixed_point(task);
    }
    return nb::make_tuple(int(result.ending), result.corrections, result.residual);
}

bool bound_finish(const AnyMatrix& X, const Rows& W, double scale, const Out<float, 2>& proxies,
                  const Out<float, 2>& discriminants, const Out<float, 2>& logits, const Out<float, 2>& scores,
                  const Out<int64_t, 1>& labels, const Out<bool, 1>& undecided, int threads) {
    const Images images = images_of(X, threads);
    const size_t n = images.n, d = images.d, c = W.shape(1);
    expect_shape(W.shape(0) == d && c > 0, "W: expected (d, c)");
    for (const Out<float, 2>* array : {&proxies, &discriminants})
        expect_shape(array->shape(0) == d && array->shape(1) == c, "proxies, discriminants: expected (d, c)");
    for (const Out<float, 2>* array : {&logits, &scores})
        expect_shape(array->shape(0) == n && array->shape(1) == c, "logits, scores: expected (n, c)");
    expect_shape(labels.shape(0) == n && undecided.shape(0) == n, "labels, undecided: expected (n,)");
    const Finish out = {W.data(),      scale,         proxies.data(),    discriminants.data(),
                        logits.data(), scores.data(), labels.data(), undecided.data()};
    const nb::gil_scoped_release release;
    return finish(images, c, out);
}

void bound_squared_lengths(const AnyMatrix& X, const Out<double, 1>& lengths, int threads) {
    const Images images = images_of(X, threads);
    expect_shape(lengths.shape(0) == images.n, "lengths: expected (n,)");
    const nb::gil_scoped_release release;
    squared_lengths(images, lengths.data());
}

}  // namespace

void bind_linear(nb::module_& m) {
    m.def("moments", bound_moments, nb::arg("X"), nb::arg("P"), nb::arg("mean").noconvert(),
          nb::arg("XtP").noconvert(), nb::arg("threads"),
          "Fills mean (d,) and XtP (c, d), returns the mean of the squared lengths.");
    m.def("fixed_point", bound_fixed_point, nb::arg("X"), nb::arg("P"), nb::arg("mean"), nb::arg("XtP"),
          nb::arg("W").noconvert(), nb::arg("tau_i"), nb::arg("tolerance"), nb::arg("max_corrections"),
          nb::arg("threads"),
          "Fixed point of the schedule into W (d, c), from float32 features and what `moments` gave.\n\n"
          "Returns (ending, corrections, residual). Endings: 0 reached, 1 a gradient vanished, 2 stalled,\n"
          "3 unfinished, 4 not positive.");
    m.def("finish", bound_finish, nb::arg("X"), nb::arg("W"), nb::arg("scale"), nb::arg("proxies").noconvert(),
          nb::arg("discriminants").noconvert(), nb::arg("logits").noconvert(), nb::arg("scores").noconvert(),
          nb::arg("labels").noconvert(), nb::arg("undecided").noconvert(), nb::arg("threads"),
          "Fills what a Solution holds from W (d, c) float64; false when a number left the range of float32.");
    m.def("squared_lengths", bound_squared_lengths, nb::arg("X"), nb::arg("lengths").noconvert(), nb::arg("threads"),
          "Fills lengths (n,) with the squared length of each row.");
}

}  // namespace kpl
