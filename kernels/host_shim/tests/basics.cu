// Small kernels that use each part of device/platform.cuh, right and wrong: what the host shim is tested with.
#include "device/platform.cuh"

namespace kpl {
static __device__ double warp_sum(double value) {
  for (int step = KPL_WARP / 2; step > 0; step /= 2) value += __shfl_xor_sync(KPL_FULL_MASK, value, step);
  return value;
}
}  // namespace kpl

// out[block] = sum of the block's share of x (n).
extern "C" __global__ void __launch_bounds__(256, 2) block_sums(const double* x, double* out, int n, long long stride) {
  double* partial = reinterpret_cast<double*>(kpl::dynamic_shared());
  double sum = 0;
  for (long long i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += x[i * stride];
  sum = kpl::warp_sum(sum);
  if (threadIdx.x % KPL_WARP == 0) partial[threadIdx.x / KPL_WARP] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < (int)((blockDim.x + KPL_WARP - 1) / KPL_WARP); ++w) sum += partial[w];
    out[blockIdx.x] = sum;
  }
}
KPL_EXPORT_KERNEL(block_sums);

// Every block of a cluster adds up what all of them hold in shared memory.
extern "C" __global__ void cluster_sums(const int* x, int* out) {
#if KPL_HAS_CLUSTERS
  int* mine = reinterpret_cast<int*>(kpl::dynamic_shared());
  if (threadIdx.x == 0) *mine = x[blockIdx.x];
  kpl::cluster_barrier();
  if (threadIdx.x == 0) {
    int sum = 0;
    for (unsigned r = 0; r < kpl::cluster_size(); ++r) sum += *kpl::remote_shared(mine, r);
    out[blockIdx.x] = sum;
  }
  kpl::cluster_barrier();
#endif
}
KPL_EXPORT_KERNEL(cluster_sums);

// Each round every block writes its number and adds up those of all.
extern "C" __global__ void grid_rounds(unsigned* counter, int* slots, int* out, int rounds) {
  int sum = 0;
  for (int r = 0; r < rounds; ++r) {
    if (threadIdx.x == 0) slots[blockIdx.x] = (int)blockIdx.x + r;
    kpl::grid_barrier(counter, gridDim.x);
    if (threadIdx.x == 0)
      for (unsigned b = 0; b < gridDim.x; ++b) sum += kpl::load_fresh(slots + b);
    kpl::grid_barrier(counter, gridDim.x);
  }
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}
KPL_EXPORT_KERNEL(grid_rounds);

// Fragments of one warp, in the order of the lanes: a (32, 4), b (32, 2), d (32, 4).
extern "C" __global__ void one_mma_bf16(const unsigned* a, const unsigned* b, float* d) {
#if KPL_HAS_MMA
  const unsigned lane = threadIdx.x;
  const unsigned mine[4] = {a[4 * lane], a[4 * lane + 1], a[4 * lane + 2], a[4 * lane + 3]};
  const unsigned other[2] = {b[2 * lane], b[2 * lane + 1]};
  float sum[4] = {d[4 * lane], d[4 * lane + 1], d[4 * lane + 2], d[4 * lane + 3]};
  kpl::mma_bf16(sum, mine, other);
  for (int i = 0; i < 4; ++i) d[4 * lane + i] = sum[i];
#endif
}
KPL_EXPORT_KERNEL(one_mma_bf16);

extern "C" __global__ void one_mma_f64(const double* a, const double* b, double* d) {
#if KPL_HAS_MMA
  double sum[2] = {d[2 * threadIdx.x], d[2 * threadIdx.x + 1]};
  kpl::mma_f64(sum, a[threadIdx.x], b[threadIdx.x]);
  d[2 * threadIdx.x] = sum[0];
  d[2 * threadIdx.x + 1] = sum[1];
#endif
}
KPL_EXPORT_KERNEL(one_mma_f64);

// y (block) = x (block) through shared memory, copied 16 bytes a thread; `wait` = 0 forgets to wait.
extern "C" __global__ void async_copy(const float4* x, float4* y, int wait) {
  float4* buffer = reinterpret_cast<float4*>(kpl::dynamic_shared());
  kpl::copy_async_16(buffer + threadIdx.x, x + threadIdx.x);
  kpl::copy_async_commit();
  if (wait) kpl::copy_async_wait<0>();
  __syncthreads();
  y[threadIdx.x] = buffer[blockDim.x - 1 - threadIdx.x];
}
KPL_EXPORT_KERNEL(async_copy);
