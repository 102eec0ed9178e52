// CUDA C++ as g++ and clang++ read it: device/platform.cuh includes this where nvcc does not compile. The names are
// CUDA's; the work is done in runtime.h. No header of the standard library in here that kernels could lean on.
#pragma once

#include <utility>

#include "intrinsics.h"
#include "runtime.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

#define KPL_WARP 32
#define KPL_FULL_MASK 0xffffffffu
#define KPL_HAS_MMA 1
#define KPL_HAS_CLUSTERS 1
#define warpSize 32

#define threadIdx (::kpl_shim::thread_index)
#define blockIdx (::kpl_shim::block_index)
#define blockDim (::kpl_shim::block_dim)
#define gridDim (::kpl_shim::grid_dim)

// The calls below must not be instrumented: what they touch are the shim's own and atomics.
#define KPL_SHIM_CALL static inline __attribute__((no_sanitize("thread")))
#define KPL_SHIM_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

static inline void __syncthreads(KPL_SHIM_HERE) { kpl_shim::sync_threads(file, line); }
static inline void __syncwarp(unsigned mask = KPL_FULL_MASK, KPL_SHIM_HERE) { kpl_shim::sync_warp(mask, file, line); }
static inline unsigned __ballot_sync(unsigned mask, int predicate, KPL_SHIM_HERE) {
  return kpl_shim::ballot(mask, predicate != 0, file, line);
}
static inline int __any_sync(unsigned mask, int predicate, KPL_SHIM_HERE) {
  return kpl_shim::ballot(mask, predicate != 0, file, line) != 0;
}
static inline int __all_sync(unsigned mask, int predicate, KPL_SHIM_HERE) {
  return kpl_shim::ballot(mask, predicate == 0, file, line) == 0;
}
static inline void __threadfence() { kpl_shim::fence(); }
static inline void __threadfence_block() { kpl_shim::fence(); }
static inline void __nanosleep(unsigned) { kpl_shim::yield(); }
[[noreturn]] static inline void __trap() { __builtin_trap(); }

namespace kpl_shim {

/// A shuffle reads within a segment of `width` lanes; `source` is counted inside it and may lie outside.
template <typename T>
KPL_SHIM_CALL T exchange(unsigned mask, T value, int source, int width, const char* file, int line) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
  const int lane = static_cast<int>(thread_index.x % 32);
  const bool inside = source >= 0 && source < width;
  std::uint64_t raw = 0;
  __builtin_memcpy(&raw, &value, sizeof value);
  raw = shuffle(mask, raw, inside ? lane / width * width + source : lane, file, line);
  __builtin_memcpy(&value, &raw, sizeof value);
  return value;
}

/// One atomic step: nothing else runs between reading and writing.
template <typename T, typename Change>
KPL_SHIM_CALL T atomically(T* address, Change change) {
  before_atomic(address, sizeof(T));
  const T old = *address;
  *address = change(old);
  return old;
}

template <typename F>
struct Signature;
template <typename... A>
struct Signature<void (*)(A...)> {
  template <void (*F)(A...), std::size_t... I>
  static void call(void** args, std::index_sequence<I...>) {
    F(*static_cast<A*>(args[I])...);
  }
  template <void (*F)(A...)>
  static void invoke(void** args) {
    call<F>(args, std::index_sequence_for<A...>());
  }
  template <typename T>
  static constexpr char code() {
    using Plain = T;
    if constexpr (__is_same(Plain, int)) return 'i';
    if constexpr (__is_same(Plain, long long)) return 'l';
    if constexpr (__is_same(Plain, float)) return 'f';
    if constexpr (__is_same(Plain, double)) return 'd';
    return 'p';
  }
  template <typename T>
  static constexpr bool allowed = code<T>() != 'p' || sizeof(T) == 8;
  static_assert((allowed<A> && ...), "kernel parameters are int, long long, float, double or pointers");
  static constexpr char types[] = {code<A>()..., '\0'};
};

/// What Python finds of a kernel, as kpl_entry_<name>.
struct Entry {
  const char* types;
  void (*invoke)(void**);
};

}  // namespace kpl_shim

#define KPL_EXPORT_KERNEL(name)                                                                             \
  extern "C" {                                                                                              \
  extern const ::kpl_shim::Entry kpl_entry_##name;                                                          \
  const ::kpl_shim::Entry kpl_entry_##name = {::kpl_shim::Signature<decltype(&name)>::types,                \
                                              &::kpl_shim::Signature<decltype(&name)>::invoke<&name>};      \
  }                                                                                                         \
  static_assert(true, "")

template <typename T>
KPL_SHIM_CALL T __shfl_sync(unsigned mask, T value, int lane, int width = 32, KPL_SHIM_HERE) {
  return kpl_shim::exchange(mask, value, lane & (width - 1), width, file, line);
}
template <typename T>
KPL_SHIM_CALL T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, KPL_SHIM_HERE) {
  return kpl_shim::exchange(mask, value, static_cast<int>(threadIdx.x % width) ^ bits, width, file, line);
}
template <typename T>
KPL_SHIM_CALL T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, KPL_SHIM_HERE) {
  return kpl_shim::exchange(mask, value, static_cast<int>(threadIdx.x % width + by), width, file, line);
}
template <typename T>
KPL_SHIM_CALL T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, KPL_SHIM_HERE) {
  return kpl_shim::exchange(mask, value, static_cast<int>(threadIdx.x % width) - static_cast<int>(by), width, file,
                            line);
}

#define KPL_SHIM_ATOMIC(T)                                                                                       \
  KPL_SHIM_CALL T atomicAdd(T* p, T v) { return kpl_shim::atomically(p, [v](T x) { return static_cast<T>(x + v); }); } \
  KPL_SHIM_CALL T atomicExch(T* p, T v) { return kpl_shim::atomically(p, [v](T) { return v; }); }
#define KPL_SHIM_ATOMIC_INTEGER(T)                                                                                \
  KPL_SHIM_ATOMIC(T)                                                                                              \
  KPL_SHIM_CALL T atomicMax(T* p, T v) { return kpl_shim::atomically(p, [v](T x) { return x < v ? v : x; }); }    \
  KPL_SHIM_CALL T atomicMin(T* p, T v) { return kpl_shim::atomically(p, [v](T x) { return v < x ? v : x; }); }    \
  KPL_SHIM_CALL T atomicAnd(T* p, T v) { return kpl_shim::atomically(p, [v](T x) { return x & v; }); }            \
  KPL_SHIM_CALL T atomicOr(T* p, T v) { return kpl_shim::atomically(p, [v](T x) { return x | v; }); }             \
  KPL_SHIM_CALL T atomicCAS(T* p, T expected, T v) {                                                              \
    return kpl_shim::atomically(p, [=](T x) { return x == expected ? v : x; });                                   \
  }
KPL_SHIM_ATOMIC_INTEGER(int)
KPL_SHIM_ATOMIC_INTEGER(unsigned)
KPL_SHIM_ATOMIC_INTEGER(unsigned long long)
KPL_SHIM_ATOMIC(float)
KPL_SHIM_ATOMIC(double)
#undef KPL_SHIM_ATOMIC
#undef KPL_SHIM_ATOMIC_INTEGER

template <typename T>
KPL_SHIM_CALL T __ldg(const T* from) {
  kpl_shim::read_only_load(from, sizeof(T));
  return *from;
}
template <typename T>
static inline T __ldcg(const T* from) {
  return *from;
}

namespace kpl {

static inline unsigned char* dynamic_shared() { return kpl_shim::shared_memory(); }
static inline void pause() { kpl_shim::yield(); }
template <typename T>
static inline T load_fresh(const T* from) {
  return *from;
}
KPL_SHIM_CALL unsigned load_acquire(const unsigned* from) {
  kpl_shim::before_atomic(from, sizeof *from);
  const unsigned value = *from;
  kpl_shim::fence();
  return value;
}
static inline void grid_barrier(unsigned* counter, unsigned num_blocks, KPL_SHIM_HERE) {
  kpl_shim::sync_grid(counter, num_blocks, file, line);
}
static inline unsigned cluster_rank() { return kpl_shim::rank_in_cluster(); }
static inline unsigned cluster_size() { return kpl_shim::blocks_in_cluster(); }
static inline void cluster_barrier(KPL_SHIM_HERE) { kpl_shim::sync_cluster(file, line); }
template <typename T>
static inline T* remote_shared(T* mine, unsigned rank) {
  return static_cast<T*>(kpl_shim::shared_of(mine, rank));
}
static inline void copy_async_16(void* shared, const void* global) { kpl_shim::start_copy(shared, global); }
static inline void copy_async_commit() { kpl_shim::close_copies(); }
template <int N>
static inline void copy_async_wait() {
  kpl_shim::wait_copies(N);
}
static inline void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], KPL_SHIM_HERE) {
  kpl_shim::multiply_bf16(d, a, b, file, line);
}
static inline void mma_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], KPL_SHIM_HERE) {
  kpl_shim::multiply_f16(d, a, b, file, line);
}
static inline unsigned short to_half(float value) { return kpl_shim::bits<unsigned short>(static_cast<_Float16>(value)); }
static inline float from_half(unsigned short bits) { return static_cast<float>(kpl_shim::bits<_Float16>(bits)); }
static inline void mma_f64(double (&d)[2], double a, double b, KPL_SHIM_HERE) {
  kpl_shim::multiply_f64(d, a, b, file, line);
}

}  // namespace kpl
