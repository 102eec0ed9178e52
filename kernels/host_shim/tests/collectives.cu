// What one warp computes with each collective, and the order in which threads come to an atomic.
#include "device/platform.cuh"

// out (6, 32): shfl from lane 5; xor 3; down 4; up 4; down 2 within 8 lanes; from lane 1 of each 8.
template <typename T>
static __device__ void all_shuffles(T* out) {
  const unsigned lane = threadIdx.x;
  const T mine = static_cast<T>(lane * 10 + 1);
  out[lane] = __shfl_sync(KPL_FULL_MASK, mine, 5);
  out[32 + lane] = __shfl_xor_sync(KPL_FULL_MASK, mine, 3);
  out[64 + lane] = __shfl_down_sync(KPL_FULL_MASK, mine, 4);
  out[96 + lane] = __shfl_up_sync(KPL_FULL_MASK, mine, 4);
  out[128 + lane] = __shfl_down_sync(KPL_FULL_MASK, mine, 2, 8);
  out[160 + lane] = __shfl_sync(KPL_FULL_MASK, mine, 1, 8);
}

extern "C" __global__ void shuffles_int(int* out) { all_shuffles(out); }
KPL_EXPORT_KERNEL(shuffles_int);
extern "C" __global__ void shuffles_long(long long* out) { all_shuffles(out); }
KPL_EXPORT_KERNEL(shuffles_long);
extern "C" __global__ void shuffles_float(float* out) { all_shuffles(out); }
KPL_EXPORT_KERNEL(shuffles_float);
extern "C" __global__ void shuffles_double(double* out) { all_shuffles(out); }
KPL_EXPORT_KERNEL(shuffles_double);

// out (3): ballot, any, all of values > limit.
extern "C" __global__ void votes(const int* values, int limit, unsigned* out) {
  const int holds = values[threadIdx.x] > limit;
  const unsigned ballot = __ballot_sync(KPL_FULL_MASK, holds);
  const int any = __any_sync(KPL_FULL_MASK, holds);
  const int all = __all_sync(KPL_FULL_MASK, holds);
  if (threadIdx.x == 0) {
    out[0] = ballot;
    out[1] = (unsigned)(any != 0);
    out[2] = (unsigned)(all != 0);
  }
}
KPL_EXPORT_KERNEL(votes);

// The last warp may have fewer lanes: a full mask means those there are.
extern "C" __global__ void short_warp(int* out) {
  if (threadIdx.x % 2 == 1) return;
  out[threadIdx.x] = __popc(__ballot_sync(0x55555555u, 1));
}
KPL_EXPORT_KERNEL(short_warp);

// counters (8): one of each atomic.
extern "C" __global__ void atomics(int* integers, unsigned long long* longs, float* floats, double* doubles) {
  const int t = (int)(blockIdx.x * blockDim.x + threadIdx.x);
  atomicAdd(integers, t);
  atomicMax(integers + 1, t);
  atomicMin(integers + 2, -t);
  atomicCAS(integers + 3, 0, 9);
  atomicAdd(longs, (unsigned long long)t << 32);
  atomicMax(longs + 1, (unsigned long long)t << 32);
  atomicExch(longs + 2, 3ull);
  atomicAdd(floats, 0.5f);
  atomicAdd(doubles, 0.25);
}
KPL_EXPORT_KERNEL(atomics);

// out[thread] = how many came before.
extern "C" __global__ void order(unsigned* counter, unsigned* out) {
  out[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(counter, 1u);
}
KPL_EXPORT_KERNEL(order);

// One of each type of parameter.
extern "C" __global__ void __launch_bounds__(2 * 32, 1) parameters(int a, long long b, float c, double d, double* out) {
  out[0] = a;
  out[1] = (double)b;
  out[2] = c;
  out[3] = d;
}
KPL_EXPORT_KERNEL(parameters);

// rounds of a barrier, for the cost of a switch.
extern "C" __global__ void barriers(int rounds) {
  for (int i = 0; i < rounds; ++i) __syncthreads();
}
KPL_EXPORT_KERNEL(barriers);
