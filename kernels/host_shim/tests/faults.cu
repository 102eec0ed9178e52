// Kernels with one mistake each, which `wrong` switches on: the host shim must find it, and must find nothing without.
#include "device/platform.cuh"

namespace kpl {
static __device__ __forceinline__ int* shared_ints() { return reinterpret_cast<int*>(dynamic_shared()); }
static __device__ __noinline__ int much_local_memory(int zero) {
  volatile int big[60000];
  for (int i = 59999; i >= 0; i -= 100) big[i] = i;
  return big[100 * zero];
}
}  // namespace kpl

// A thread reads what its neighbour wrote.
extern "C" __global__ void missing_barrier(int* out, int wrong) {
  int* shared = kpl::shared_ints();
  shared[threadIdx.x] = (int)threadIdx.x;
  if (!wrong) __syncthreads();
  out[threadIdx.x] = shared[(threadIdx.x + 1) % blockDim.x];
}
KPL_EXPORT_KERNEL(missing_barrier);

// The next round overwrites what slower threads still read.
extern "C" __global__ void missing_second_barrier(int* out, int wrong) {
  int* shared = kpl::shared_ints();
  int sum = 0;
  for (int round = 0; round < 3; ++round) {
    if (threadIdx.x == 0) *shared = round;
    __syncthreads();
    sum += *shared;
    if (!wrong) __syncthreads();
  }
  out[threadIdx.x] = sum;
}
KPL_EXPORT_KERNEL(missing_second_barrier);

// wrong = 1: nothing between; 2: a shuffle, which orders no memory.
extern "C" __global__ void missing_syncwarp(int* out, int wrong) {
  int* shared = kpl::shared_ints();
  shared[threadIdx.x] = (int)threadIdx.x;
  if (wrong == 0) __syncwarp();
  if (wrong == 2) __shfl_sync(KPL_FULL_MASK, 1, 0);
  out[threadIdx.x] = shared[threadIdx.x ^ 1];
}
KPL_EXPORT_KERNEL(missing_syncwarp);

// Halves of a warp that each synchronise: right within a half, wrong = 1 reads the other one.
extern "C" __global__ void half_warps(int* out, int wrong) {
  int* shared = kpl::shared_ints();
  const unsigned mask = threadIdx.x % KPL_WARP < 16 ? 0x0000ffffu : 0xffff0000u;
  shared[threadIdx.x] = (int)threadIdx.x;
  __syncwarp(mask);
  out[threadIdx.x] = shared[threadIdx.x ^ (wrong ? 16 : 1)];
}
KPL_EXPORT_KERNEL(half_warps);

// Blocks read what block 0 wrote.
extern "C" __global__ void missing_grid_barrier(unsigned* counter, int* value, int* out, int wrong) {
  if (blockIdx.x == 0 && threadIdx.x == 0) *value = 7;
  if (!wrong) kpl::grid_barrier(counter, gridDim.x);
  out[blockIdx.x * blockDim.x + threadIdx.x] = kpl::load_fresh(value);
}
KPL_EXPORT_KERNEL(missing_grid_barrier);

// The last block adds up what all wrote. wrong = 1: no fence before the atomic, 2: none after it.
extern "C" __global__ void last_block(unsigned* counter, int* parts, int* out, int wrong) {
  int* is_last = kpl::shared_ints();
  if (threadIdx.x == 0) {
    parts[blockIdx.x] = (int)blockIdx.x + 1;
    if (wrong != 1) __threadfence();
    *is_last = atomicAdd(counter, 1u) + 1 == gridDim.x;
    if (wrong != 2) __threadfence();
  }
  __syncthreads();
  if (!*is_last || threadIdx.x != 1) return;
  int sum = 0;
  for (unsigned b = 0; b < gridDim.x; ++b) sum += kpl::load_fresh(parts + b);
  *out = sum;
}
KPL_EXPORT_KERNEL(last_block);

// Neighbouring bytes of one word belong to different threads; wrong = 1: the same byte.
extern "C" __global__ void bytes(unsigned char* out, int wrong) {
  out[wrong ? threadIdx.x / 2 : threadIdx.x] = (unsigned char)threadIdx.x;
}
KPL_EXPORT_KERNEL(bytes);

// wrong = 1: a plain addition where an atomic belongs.
extern "C" __global__ void counting(int* count, int wrong) {
  if (wrong)
    *count += 1;
  else
    atomicAdd(count, 1);
}
KPL_EXPORT_KERNEL(counting);

// wrong = 1: threads wait at two different barriers; 2: thread 0 waits for its warp instead.
extern "C" __global__ void divergent(int* out, int wrong) {
  if (wrong == 1 && threadIdx.x < KPL_WARP) {
    __syncthreads();
  } else if (wrong == 2 && threadIdx.x == 0) {
    __syncwarp();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1;
}
KPL_EXPORT_KERNEL(divergent);

// wrong = 1: lanes name different masks; 2: a lane is not in its own; 3: different collectives.
extern "C" __global__ void masks(int* out, int wrong) {
  const unsigned lane = threadIdx.x % KPL_WARP;
  unsigned mask = KPL_FULL_MASK;
  if (wrong == 1 && lane >= 16) mask = 0xffff0000u;
  if (wrong == 2) mask = 1u;
  if (wrong == 3 && lane == 5)
    out[threadIdx.x] = (int)__ballot_sync(mask, 1);
  else
    out[threadIdx.x] = __shfl_xor_sync(mask, (int)lane, 1);
}
KPL_EXPORT_KERNEL(masks);

// Not all threads of a block come to the barrier of the grid; wrong = 2: it waits for a block too many.
extern "C" __global__ void uneven_grid(unsigned* counter, int wrong) {
  if (wrong == 1 && blockIdx.x == 1) return;
  kpl::grid_barrier(counter, gridDim.x + (wrong == 2 ? 1 : 0));
}
KPL_EXPORT_KERNEL(uneven_grid);

// x[offset + thread] = 1 in global or shared memory, or read.
extern "C" __global__ void touch(int* x, long long offset, int in_shared, int is_write) {
  int* base = in_shared ? kpl::shared_ints() : x;
  if (is_write)
    base[offset + threadIdx.x] = 1;
  else
    (void)static_cast<volatile int*>(base)[offset + threadIdx.x];
}
KPL_EXPORT_KERNEL(touch);

// wrong = 1: __trap; 2: an integer divided by zero; 3: more local memory than there is.
extern "C" __global__ void broken(int* out, int wrong, int zero) {
  if (wrong == 1) __trap();
  if (wrong == 2) *out = 100 / zero;
  if (wrong == 3) *out = kpl::much_local_memory(zero);
}
KPL_EXPORT_KERNEL(broken);

// wrong = 1: no barrier at the end of the cluster; 2: none at the beginning; 3: no barrier before the read; 4: as 1, with
// an address that was asked for in time; 5: as 4, without waiting for the other block to end.
extern "C" __global__ void cluster_life(int* out, int wrong) {
#if KPL_HAS_CLUSTERS
  int* mine = kpl::shared_ints();
  if (wrong != 2) kpl::cluster_barrier();
  const unsigned next = (kpl::cluster_rank() + 1) % kpl::cluster_size();
  int* theirs = kpl::remote_shared(mine, next);
  if (threadIdx.x == 0) *theirs = (int)next;
  if (wrong != 3) kpl::cluster_barrier();
  if (threadIdx.x == 1) out[blockIdx.x] = *mine;
  if ((wrong == 1 || wrong >= 4) && threadIdx.x == 1 && kpl::cluster_rank() == 0) {
    for (int i = 0; i < (wrong == 5 ? 0 : 1000); ++i) kpl::pause();
    out[0] += *(wrong == 1 ? kpl::remote_shared(mine, next) : theirs);
  }
  if (wrong != 1 && wrong < 4) kpl::cluster_barrier();
#endif
}
KPL_EXPORT_KERNEL(cluster_life);

// Reads through the read-only cache what the launch itself wrote.
extern "C" __global__ void stale_read(int* x, int* out, int wrong) {
  if (threadIdx.x == 0) x[0] = 5;
  __syncthreads();
  out[threadIdx.x] = wrong ? __ldg(x) : x[0];
}
KPL_EXPORT_KERNEL(stale_read);

// Waits for a flag that wrong = 1 never sets.
extern "C" __global__ void waits_for_flag(unsigned* flag, int wrong) {
  if (threadIdx.x == 1 && !wrong) {
    __threadfence();
    atomicExch(flag, 1u);
  }
  if (threadIdx.x == 0)
    while (kpl::load_acquire(flag) == 0) kpl::pause();
}
KPL_EXPORT_KERNEL(waits_for_flag);

// What shared memory holds before anybody writes it.
extern "C" __global__ void uninitialised(float* out, double* wide) {
  out[threadIdx.x] = reinterpret_cast<float*>(kpl::dynamic_shared())[threadIdx.x];
  wide[threadIdx.x] = reinterpret_cast<double*>(kpl::dynamic_shared())[threadIdx.x];
}
KPL_EXPORT_KERNEL(uninitialised);

// All threads of a block read one word, which `writer` then writes: a race, though it may be the last to have read.
extern "C" __global__ void many_readers(int* word, int* out, int writer, int wrong) {
  out[threadIdx.x] = *word;
  if (!wrong) __syncthreads();
  if ((int)threadIdx.x == writer) *word = 1;
}
KPL_EXPORT_KERNEL(many_readers);
