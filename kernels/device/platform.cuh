// What a kernel may use, and the only file that asks which compiler reads it. Under nvcc and NVRTC these are intrinsics
// and PTX; under g++ and clang++ the same sources run on the CPU, one fiber a thread (kernels/host_shim).
//
// Kernels use dynamic shared memory only, no static __shared__ arrays, no __constant__ and no printf: the host shim
// gives each block its own shared memory at run time. Every kernel is followed by KPL_EXPORT_KERNEL(name).
#pragma once

#if !defined(__CUDACC__)
#include "../host_shim/cuda.h"
#else

#define KPL_WARP 32
#define KPL_FULL_MASK 0xffffffffu
#define KPL_EXPORT_KERNEL(name) static_assert(true, "")

// Defined while the host side of a .cu file is read too, where no architecture is.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define KPL_HAS_MMA 1
#else
#define KPL_HAS_MMA 0
#endif
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define KPL_HAS_CLUSTERS 1
#else
#define KPL_HAS_CLUSTERS 0
#endif

namespace kpl {

/// Start of the block's dynamic shared memory, aligned to 16 bytes.
static __device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ uint4 kpl_dynamic_shared[];
  return reinterpret_cast<unsigned char*>(kpl_dynamic_shared);
}

/// Lets others run in a loop that waits for memory.
static __device__ __forceinline__ void pause() { __nanosleep(32); }

/// Reads past the L1 cache: for what another block wrote earlier in this launch.
template <typename T>
static __device__ __forceinline__ T load_fresh(const T* from) {
  return __ldcg(from);
}

static __device__ __forceinline__ unsigned load_acquire(const unsigned* from) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(__cvta_generic_to_global(from)) : "memory");
  return value;
}

/// Waits for all threads of all `num_blocks` blocks that share `counter`, which was zero before the launch. The blocks
/// must all be resident (a cooperative launch). What they wrote before is visible after; read it with load_fresh.
static __device__ __forceinline__ void grid_barrier(unsigned* counter, unsigned num_blocks) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();  // cumulative over the barrier above: publishes the writes of the whole block
    const unsigned ticket = atomicAdd(counter, 1u);
    const unsigned goal = (ticket / num_blocks + 1u) * num_blocks;
    // The difference stays right when the counter wraps, as long as a round is shorter than half its range.
    while (static_cast<int>(load_acquire(counter) - goal) < 0) pause();
    __threadfence();
  }
  __syncthreads();
}

// Without clusters (before sm_90) a block is a cluster of its own.

/// Which block of its cluster this is.
static __device__ __forceinline__ unsigned cluster_rank() {
#if KPL_HAS_CLUSTERS
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#else
  return 0;
#endif
}

/// Blocks of this cluster.
static __device__ __forceinline__ unsigned cluster_size() {
#if KPL_HAS_CLUSTERS
  unsigned size;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
#else
  return 1;
#endif
}

/// Waits for all threads of the cluster; shared and global writes of before are visible after.
static __device__ __forceinline__ void cluster_barrier() {
#if KPL_HAS_CLUSTERS
  asm volatile("barrier.cluster.arrive.release;\n\tbarrier.cluster.wait.acquire;" ::: "memory");
#else
  __syncthreads();
#endif
}

/// The same place in the shared memory of block `rank` of the cluster. That block must have started (a cluster_barrier
/// at the beginning) and must not have ended (one at the end).
template <typename T>
static __device__ __forceinline__ T* remote_shared(T* mine, unsigned rank) {
#if KPL_HAS_CLUSTERS
  unsigned long long theirs;
  asm volatile("mapa.u64 %0, %1, %2;" : "=l"(theirs) : "l"(reinterpret_cast<unsigned long long>(mine)), "r"(rank));
  return reinterpret_cast<T*>(theirs);
#else
  (void)rank;
  return mine;
#endif
}

/// Copies 16 bytes, both sides aligned to 16, without waiting (sm_80+).
static __device__ __forceinline__ void copy_async_16(void* shared, const void* global) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(__cvta_generic_to_global(global)) : "memory");
#else
  *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
#endif
}

/// Closes a group of the copies this thread has started.
static __device__ __forceinline__ void copy_async_commit() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/// Waits until at most the N newest groups of this thread are under way; other threads see the data after a barrier.
template <int N>
static __device__ __forceinline__ void copy_async_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

/// d += a b on one warp, bfloat16 pairs in and float32 out: mma.sync.m16n8k16, a by rows, b by columns. With
/// g = lane / 4 and t = lane % 4: a[0..3] hold (g, 2t..), (g+8, 2t..), (g, 2t+8..), (g+8, 2t+8..), the lower column in
/// the lower half; b[0..1] hold (2t.., g), (2t+8.., g); d[0..3] are (g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1).
static __device__ __forceinline__ void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if KPL_HAS_MMA
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  (void)d, (void)a, (void)b;
  __trap();
#endif
}

/// The same with float16 pairs.
static __device__ __forceinline__ void mma_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if KPL_HAS_MMA
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  (void)d, (void)a, (void)b;
  __trap();
#endif
}

/// The bits of the float16 nearest to `value`, ties to even.
static __device__ __forceinline__ unsigned short to_half(float value) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

static __device__ __forceinline__ float from_half(unsigned short bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

/// d += a b on one warp in float64: mma.sync.m8n8k4. a is (g, t), b is (t, g), d[0..1] are (g, 2t), (g, 2t+1).
static __device__ __forceinline__ void mma_f64(double (&d)[2], double a, double b) {
#if KPL_HAS_MMA
  asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
               : "+d"(d[0]), "+d"(d[1])
               : "d"(a), "d"(b));
#else
  (void)d, (void)a, (void)b;
  __trap();
#endif
}

}  // namespace kpl
#endif
