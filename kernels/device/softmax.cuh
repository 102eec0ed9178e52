// Softmax of one row by one thread, float64, with the infinities defined as in kpl_engine/solver/softmax.py: -inf is an
// impossible class, a row of only -inf is uniform, +inf entries share the whole mass of their row, NaN spreads over its
// row. One rule does it: an entry equal to the row's maximum has the exponent 0, so inf - inf is never computed.
//
// A row of c entries costs c exponentials and one division; strides are in elements, in and out may be the same row.
#pragma once

#include "device/platform.cuh"

namespace kpl {

/// The largest of c entries; -inf for none. NaN never is.
static __device__ __forceinline__ double row_maximum(const double* row, long long stride, int c) {
  double peak = __longlong_as_double(static_cast<long long>(0xfff0000000000000ull));
  for (int j = 0; j < c; ++j) {
    const double value = row[j * stride];
    peak = value > peak ? value : peak;
  }
  return peak;
}

/// (value - peak) / tau, 0 where the entry is the maximum. The difference comes first, so no finite row overflows.
static __device__ __forceinline__ double softmax_exponent(double value, double peak, double tau) {
  return value == peak ? 0.0 : (value - peak) / tau;
}

/// out <- softmax(row / tau).
static __device__ __forceinline__ void softmax_row(const double* row, long long stride, int c, double tau, double* out,
                                                   long long out_stride) {
  const double peak = row_maximum(row, stride, c);
  double total = 0.0;
  for (int j = 0; j < c; ++j) {
    const double power = exp(softmax_exponent(row[j * stride], peak, tau));
    out[j * out_stride] = power;
    total += power;
  }
  const double inverse = 1.0 / total;
  for (int j = 0; j < c; ++j) out[j * out_stride] *= inverse;
}

/// out <- log softmax(row / tau).
static __device__ __forceinline__ void log_softmax_row(const double* row, long long stride, int c, double tau,
                                                       double* out, long long out_stride) {
  const double peak = row_maximum(row, stride, c);
  double total = 0.0;
  for (int j = 0; j < c; ++j) {
    const double exponent = softmax_exponent(row[j * stride], peak, tau);
    out[j * out_stride] = exponent;
    total += exp(exponent);
  }
  const double shift = log(total);
  for (int j = 0; j < c; ++j) out[j * out_stride] -= shift;
}

}  // namespace kpl
