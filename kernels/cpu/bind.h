// The parts of the Python module, one function each, and the arrays they take.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <string>

#include "core.h"

namespace kpl {

void bind_labels(nanobind::module_& m);
void bind_linear(nanobind::module_& m);
void bind_limits(nanobind::module_& m);
void bind_schedule(nanobind::module_& m);

// float32 or float64 with any strides, never written to.
using AnyMatrix = nanobind::ndarray<nanobind::ro, nanobind::ndim<2>, nanobind::device::cpu>;
// float64, row by row.
using Rows = nanobind::ndarray<const double, nanobind::ndim<2>, nanobind::c_contig, nanobind::device::cpu>;
using WritableRows = nanobind::ndarray<double, nanobind::ndim<2>, nanobind::c_contig, nanobind::device::cpu>;

using Vector = nanobind::ndarray<const double, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;

inline Matrix matrix_of(const AnyMatrix& array, const char* name) {
    const bool is_float32 = array.dtype() == nanobind::dtype<float>();
    if (!is_float32 && array.dtype() != nanobind::dtype<double>())
        throw nanobind::type_error((std::string(name) + ": expected float32 or float64").c_str());
    return {array.data(), ptrdiff_t(array.stride(0)), ptrdiff_t(array.stride(1)), is_float32};
}

inline void expect_shape(bool fits, const char* message) {
    if (!fits) throw nanobind::value_error(message);
}

}  // namespace kpl
