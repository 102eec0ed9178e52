// Rows to unit length in place, and what was no unit vector: the check of every encoder's output, on the device.
//
//   norm_i = sqrt(sum_j rows_ij^2) in float64; rows_ij <- rows_ij / norm_i where |norm_i - 1| <= max_error
//
// Twin: kpl_engine/encoder/base.py, check_unit.
//
// rows (n, d) float32, C-contiguous. found: two unsigned 64-bit numbers that start as all ones: found[0] is then one less
// than the number of rows that are no unit vectors, found[1] the first of them, counted from `start`. Such rows are left
// as they are.
//
// Bytes: 4 n d read twice (the second time from L1), 4 n d written. Flops: 4 n d in float64.
// H200: n = 64, d = 768 is one wave of 8 blocks, bound by latency: predicted 3 us. n = 27558: 170 MB, 0.04 ms by
// bandwidth, 0.02 ms by arithmetic.
#include "device/platform.cuh"

namespace kpl {
namespace {

__device__ __forceinline__ double sum_of_warp(double value) {
  for (int lanes = KPL_WARP / 2; lanes > 0; lanes /= 2) value += __shfl_xor_sync(KPL_FULL_MASK, value, lanes);
  return value;
}

}  // namespace
}  // namespace kpl

/// One warp a row.
extern "C" __global__ void __launch_bounds__(256)
    unit_rows(float* rows, long long n, int d, long long start, double max_error, unsigned long long* found) {
  const long long i = (blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x) / KPL_WARP;
  const int lane = threadIdx.x % KPL_WARP;
  if (i >= n) return;
  float* row = rows + i * d;
  double squares = 0;
  for (int j = lane; j < d; j += KPL_WARP) squares = fma(double(row[j]), double(row[j]), squares);
  const double norm = sqrt(kpl::sum_of_warp(squares));
  if (!(fabs(norm - 1.0) <= max_error)) {  // written so that NaN is bad
    if (lane == 0) {
      atomicAdd(found, 1ull);
      atomicMin(found + 1, static_cast<unsigned long long>(start + i));
    }
    return;
  }
  for (int j = lane; j < d; j += KPL_WARP) row[j] = static_cast<float>(double(row[j]) / norm);
}
KPL_EXPORT_KERNEL(unit_rows);
