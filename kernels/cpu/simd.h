// Vectors of float64 for one instruction set, from GCC/Clang vector extensions: one source, compiled once per set.
//
// Every file that includes this one is compiled several times, with other flags and another KPL_ISA (isa.cpp).
// Hence all of it lives in an anonymous namespace, and nothing here or above it may use inline functions or
// templates of the standard library: the linker keeps one copy of those, and that copy could hold AVX-512 code.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifndef KPL_ISA
#error "KPL_ISA: expected the name of an instruction set, got none; these files are compiled by isa.cpp"
#endif

namespace kpl {
namespace KPL_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 8;         // doubles in a vector
constexpr int kPanelVectors = 4;  // 4 x 6 sums and 4 operands of the 32 registers
constexpr int kMaxColumns = 6;
#elif defined(__AVX__)
constexpr int kLanes = 4;
constexpr int kPanelVectors = 3;  // 3 x 4 sums and 3 operands of the 16 registers
constexpr int kMaxColumns = 4;
#elif defined(__aarch64__)
constexpr int kLanes = 2;
constexpr int kPanelVectors = 4;  // 32 registers
constexpr int kMaxColumns = 6;
#else
constexpr int kLanes = 2;
constexpr int kPanelVectors = 3;
constexpr int kMaxColumns = 4;
#endif
constexpr size_t kPanel = size_t(kLanes) * kPanelVectors;  // rows of one panel

typedef double Vec __attribute__((vector_size(kLanes * 8)));
typedef int64_t Bits __attribute__((vector_size(kLanes * 8)));
typedef double LooseVec __attribute__((vector_size(kLanes * 8), aligned(8), may_alias));
typedef float LooseFloats __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

inline Vec load(const double* at) { return *reinterpret_cast<const LooseVec*>(at); }
inline Vec load(const float* at) {
    return __builtin_convertvector(*reinterpret_cast<const LooseFloats*>(at), Vec);
}
inline void store(double* at, Vec value) { *reinterpret_cast<LooseVec*>(at) = value; }
inline Vec all(double value) { return Vec{} + value; }
inline Vec absolute(Vec value) { return reinterpret_cast<Vec>(reinterpret_cast<Bits>(value) & INT64_MAX); }
inline Vec select(Bits mask, Vec yes, Vec no) { return mask ? yes : no; }

// Lanes are added in halves, always in the same order.
inline double sum(Vec value) {
    double part[kLanes];
    __builtin_memcpy(part, &value, sizeof(value));
    for (int width = kLanes / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) part[i] += part[i + width];
    return part[0];
}

inline double largest(Vec value) {
    double best = value[0];
    for (int i = 1; i < kLanes; ++i) best = value[i] > best ? value[i] : best;
    return best;
}

inline bool any(Bits value) {
    int64_t found = 0;
    for (int i = 0; i < kLanes; ++i) found |= value[i];
    return found != 0;
}

// e^x. Error below 1.2 ulp (tests/test_simd.cpp measures up to 1.09).
//   x = k ln2 + r, |r| <= ln2/2;  e^r = 1 + r + r² q(r), q of degree 9 by Chebyshev interpolation (error 1.6e-17).
// kGradual: underflows gradually to 0 and gives 0 for -inf, infinity above 709.78. Otherwise x is held to
// [-708, 709]: where a term is added to 1 that costs nothing, and saves a multiplication. NaN stays NaN in both.
template <bool kGradual>
inline Vec exp(Vec x) {
    const double low = kGradual ? -746.0 : -708.0, high = kGradual ? 710.0 : 709.0;
    x = select(x < all(low), all(low), x);
    x = select(x > all(high), all(high), x);
    const Vec magic = all(6755399441055744.0);  // 1.5 * 2^52: the sum's low bits are round(x / ln2)
    const Vec rounded = x * 0x1.71547652b82fep+0 + magic;
    const Vec k = rounded - magic;
    Vec r = x - k * 0x1.62e42fee00000p-1;  // exact: the constant has 21 trailing zero bits
    r = r - k * 0x1.a39ef35793c76p-33;
    const Vec r2 = r * r, r4 = r2 * r2;
    const Vec q01 = 0x1.0000000000001p-1 + r * 0x1.5555555555556p-3;
    const Vec q23 = 0x1.5555555553d63p-5 + r * 0x1.11111111109b3p-7;
    const Vec q45 = 0x1.6c16c1788bd90p-10 + r * 0x1.a01a01a7c41d5p-13;
    const Vec q67 = 0x1.a019b90d2ae7ap-16 + r * 0x1.71de0dae63bb3p-19;
    const Vec q89 = 0x1.289185613a3d6p-22 + r * 0x1.af38a9b0ec855p-26;
    const Vec q = (q01 + r2 * q23) + r4 * ((q45 + r2 * q67) + r4 * q89);
    const Vec power = 1.0 + (r + r2 * q);
    const Bits whole = reinterpret_cast<Bits>(rounded);  // low 12 bits: k in two's complement
    if (!kGradual) return power * reinterpret_cast<Vec>((whole << 52) + (int64_t(1023) << 52));
    // 2^k in two factors, for k runs from -1077 to 1025, past what one exponent holds.
    const Bits exponent = (whole << 52) >> 52;  // sign extended
    const Bits half = exponent >> 1;
    const Vec first = reinterpret_cast<Vec>((half + 1023) << 52);
    const Vec second = reinterpret_cast<Vec>((exponent - half + 1023) << 52);
    return power * first * second;
}

// A number of vectors known to the compiler; `with_width` turns the run-time number into one.
template <int V>
struct Width {
    static constexpr int value = V;
};

template <typename Function>
inline void with_width(int vectors, Function function) {
    switch (vectors) {
        case 1: function(Width<1>()); break;
        case 2: function(Width<2>()); break;
        case 3: function(Width<3>()); break;
        default: function(Width<kPanelVectors>()); break;
    }
}

}  // namespace
}  // namespace KPL_ISA
}  // namespace kpl
