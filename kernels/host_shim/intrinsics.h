// CUDA's arithmetic and bit intrinsics in plain C++. Rounding follows IEEE as on the GPU; the fast approximations
// (__expf and the like) are the exact functions here.
#pragma once

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "vector_types.h"

namespace kpl_shim {
template <typename To, typename From>
static inline To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "a change of type, not of size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
}  // namespace kpl_shim

static inline long long __double_as_longlong(double x) { return kpl_shim::bits<long long>(x); }
static inline double __longlong_as_double(long long x) { return kpl_shim::bits<double>(x); }
static inline int __float_as_int(float x) { return kpl_shim::bits<int>(x); }
static inline float __int_as_float(int x) { return kpl_shim::bits<float>(x); }
static inline unsigned __float_as_uint(float x) { return kpl_shim::bits<unsigned>(x); }
static inline float __uint_as_float(unsigned x) { return kpl_shim::bits<float>(x); }
static inline int __double2hiint(double x) { return static_cast<int>(kpl_shim::bits<long long>(x) >> 32); }
static inline int __double2loint(double x) { return static_cast<int>(kpl_shim::bits<long long>(x)); }
static inline double __hiloint2double(int hi, int lo) {
  return kpl_shim::bits<double>((static_cast<long long>(hi) << 32) | static_cast<unsigned>(lo));
}

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
static inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
static inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<unsigned long long>(a) * b) >> 32);
}

static inline float __fadd_rn(float a, float b) { volatile float sum = a + b; return sum; }
static inline float __fsub_rn(float a, float b) { volatile float sum = a - b; return sum; }
static inline float __fmul_rn(float a, float b) { volatile float product = a * b; return product; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline float __frcp_rn(float a) { return 1.0f / a; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline double __dadd_rn(double a, double b) { volatile double sum = a + b; return sum; }
static inline double __dsub_rn(double a, double b) { volatile double sum = a - b; return sum; }
static inline double __dmul_rn(double a, double b) { volatile double product = a * b; return product; }
static inline double __ddiv_rn(double a, double b) { return a / b; }
static inline double __dsqrt_rn(double a) { return sqrt(a); }
static inline double __drcp_rn(double a) { return 1.0 / a; }
static inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
static inline int __float2int_rn(float x) { return static_cast<int>(rintf(x)); }
static inline int __float2int_rd(float x) { return static_cast<int>(floorf(x)); }
static inline int __float2int_rz(float x) { return static_cast<int>(x); }
static inline int __double2int_rn(double x) { return static_cast<int>(rint(x)); }
static inline float __int2float_rn(int x) { return static_cast<float>(x); }
static inline float __double2float_rn(double x) { return static_cast<float>(x); }
#define __expf expf  // glibc has the names for itself
#define __logf logf
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
// Newer glibc has these two.
#define rsqrt(x) (1.0 / sqrt(x))
#define rsqrtf(x) (1.0f / sqrtf(x))

#define KPL_SHIM_MIN_MAX(type)                                        \
  static inline type min(type a, type b) { return b < a ? b : a; }    \
  static inline type max(type a, type b) { return a < b ? b : a; }
KPL_SHIM_MIN_MAX(int)
KPL_SHIM_MIN_MAX(unsigned)
KPL_SHIM_MIN_MAX(long)
KPL_SHIM_MIN_MAX(unsigned long)
KPL_SHIM_MIN_MAX(long long)
KPL_SHIM_MIN_MAX(unsigned long long)
#undef KPL_SHIM_MIN_MAX
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }

/// Bytes of (b, a) by the four selectors of `which`; those of a have the numbers 0 to 3.
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned which) {
  const unsigned long long both = (static_cast<unsigned long long>(b) << 32) | a;
  unsigned found = 0;
  for (int i = 0; i < 4; ++i)
    found |= static_cast<unsigned>((both >> (8 * ((which >> (4 * i)) & 7))) & 255) << (8 * i);
  return found;
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  const unsigned long long both = (static_cast<unsigned long long>(high) << 32) | low;
  return static_cast<unsigned>(both >> (shift & 31));
}
/// sum + the dot product of four signed bytes with four others.
static inline int __dp4a(int a, int b, int sum) {
  unsigned total = static_cast<unsigned>(sum);  // wraps, as on the GPU
  for (int i = 0; i < 4; ++i)
    total += static_cast<unsigned>(static_cast<signed char>(a >> (8 * i)) * static_cast<signed char>(b >> (8 * i)));
  return static_cast<int>(total);
}
