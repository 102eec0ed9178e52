// Softmax of similarities with the infinities defined, and sums over images (docs/method.md 2).
//
// S and P are (c, ld). Reads S twice and writes P twice, 32 n c bytes, with n c exponentials; n logarithms more where
// the logarithms are wanted. Vectors run over images, so a class more or less needs no other code, and images that
// are equal stay equal to the bit.
#pragma once

#include "core.h"
#include "simd.h"

namespace kpl {
namespace KPL_ISA {
namespace {

constexpr int kBlock = 4;  // vectors of images at once: enough divisions and exponentials in flight

// `function(width, at)` for all vectors of the first n entries of a column, kBlock at a time, then one by one.
template <typename Function>
inline void each_block(size_t n, Function function) {
    size_t at = 0;
    for (; at + kBlock * kLanes <= n; at += kBlock * kLanes) function(Width<kBlock>(), at);
    for (; at < n; at += kLanes) function(Width<1>(), at);
}

// Entries from n to ld of every class.
inline void fill_padding(const LabelTask& task, double value) {
    for (size_t j = 0; j < task.c; ++j)
        for (size_t i = task.n; i < task.ld; ++i) task.P[j * task.ld + i] = value;
}

// log x for x >= 1, error below 2 ulp: x = 2^k m, sqrt(1/2) <= m < sqrt 2, log m = 2 artanh s with s = (m-1)/(m+1).
// s² <= 0.0295, so the series to s^19 leaves 3e-17.
inline Vec log(Vec x) {
    const int64_t root_half = 0x3fe6a09e667f3bcd;
    const Bits bits = reinterpret_cast<Bits>(x), k = (bits - root_half) >> 52;
    const Vec m = reinterpret_cast<Vec>(bits - (k << 52)), power = __builtin_convertvector(k, Vec);
    const Vec s = (m - 1.0) / (m + 1.0), s2 = s * s;
    Vec series = all(1.0 / 19);
    for (int odd = 17; odd > 1; odd -= 2) series = 1.0 / odd + s2 * series;
    const Vec small = power * 0x1.a39ef35793c76p-33 + 2.0 * s * s2 * series;
    return power * 0x1.62e42fee00000p-1 + (2.0 * s + small);
}

// P <- softmax(S / tau_t), or its logarithm, for V vectors of images. Where an entry is the maximum of its row the
// exponent is 0 by definition: that one rule makes a row of only -inf uniform, lets the +inf entries of a row share
// it, and keeps inf - inf out. NaN spreads over its row.
template <bool kLogs, int V>
void softmax_block(const LabelTask& task, size_t at) {
    Vec peak[V], total[V];
    for (int v = 0; v < V; ++v) {
        peak[v] = all(-__builtin_inf());
        total[v] = Vec{};
    }
    for (size_t j = 0; j < task.c; ++j)
        for (int v = 0; v < V; ++v) {
            const Vec s = load(task.S + j * task.ld + at + v * kLanes);
            peak[v] = select(s > peak[v], s, peak[v]);
        }
    for (size_t j = 0; j < task.c; ++j)
        for (int v = 0; v < V; ++v) {
            const size_t here = j * task.ld + at + v * kLanes;
            const Vec s = load(task.S + here);
            const Vec exponent = select(s == peak[v], Vec{}, (s - peak[v]) / task.tau_t), power = exp<true>(exponent);
            total[v] += power;
            store(task.P + here, kLogs ? exponent : power);
        }
    if (kLogs)
        for (int v = 0; v < V; ++v) total[v] = log(total[v]);
    for (size_t j = 0; j < task.c; ++j)
        for (int v = 0; v < V; ++v) {
            const size_t here = j * task.ld + at + v * kLanes;
            store(task.P + here, kLogs ? load(task.P + here) - total[v] : load(task.P + here) / total[v]);
        }
}

template <bool kLogs>
void softmax(const LabelTask& task) {
    each_block(task.n, [&](auto width, size_t at) { softmax_block<kLogs, decltype(width)::value>(task, at); });
    fill_padding(task, kLogs ? -__builtin_inf() : 0.0);
}

// Σ_i of one class, or of the exponentials where P holds logarithms.
template <bool kLogs>
double column_sum(const LabelTask& task, size_t j) {
    const double* column = task.P + j * task.ld;
    Vec total[kBlock] = {};
    each_block(task.n, [&](auto width, size_t at) {
        for (int v = 0; v < decltype(width)::value; ++v) {
            const Vec p = load(column + at + v * kLanes);
            total[v] += kLogs ? exp<true>(p) : p;
        }
    });
    return sum((total[0] + total[1]) + (total[2] + total[3]));
}

}  // namespace
}  // namespace KPL_ISA
}  // namespace kpl
