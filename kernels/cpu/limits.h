// What one core of this machine can do at most, for benchmarks to be held against: multiply-adds on registers,
// exponentials on data in the L1 cache, reads of an array of a given size. Each returns work done per second by `now`.
#pragma once

#include "core.h"
#include "simd.h"

namespace kpl {
namespace KPL_ISA {
namespace {

// Makes the compiler believe that the sums are wanted.
inline void keep(const Vec* sums, int count) {
    Vec total = {};
    for (int s = 0; s < count; ++s) total += sums[s];
    double wanted = sum(total);
    asm volatile("" : "+m"(wanted));
}

// Multiply-adds (one for each lane) per second, on sums that never leave the registers.
inline double multiply_add_rate(double (*now)(), int64_t rounds) {
    constexpr int kSums = kPanelVectors * kMaxColumns;  // as many as the products keep, all in registers
    Vec sums[kSums];
    for (int s = 0; s < kSums; ++s) sums[s] = all(1.0 + s);
    Vec factor = all(1.0 - 1e-9), term = all(1e-9);
    asm volatile("" : "+m"(factor), "+m"(term));  // not known when compiling, so nothing is folded
    const Vec a = factor, b = term;
    const double start = now();
    for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 32
        for (int s = 0; s < kSums; ++s) sums[s] = sums[s] * a + b;
    }
    const double seconds = now() - start;
    keep(sums, kSums);
    return double(rounds) * kSums * kLanes / seconds;
}

// Exponentials per second over `size` numbers.
inline double exp_rate(double (*now)(), int64_t rounds, double* data, size_t size) {
    for (size_t i = 0; i < size; ++i) data[i] = -double(i % 64) / 8;
    const double start = now();
    for (int64_t round = 0; round < rounds; ++round)
        for (size_t i = 0; i + 4 * kLanes <= size; i += 4 * kLanes)
            for (int v = 0; v < 4; ++v) store(data + i + v * kLanes, all(-1.0) - exp<false>(load(data + i + v * kLanes)));
    return double(rounds) * double(size / (4 * kLanes) * (4 * kLanes)) / (now() - start);
}

// Bytes read per second from an array of `size` doubles, again and again.
inline double read_rate(double (*now)(), int64_t rounds, const double* data, size_t size) {
    Vec sums[8] = {};
    const double start = now();
    for (int64_t round = 0; round < rounds; ++round)
        for (size_t i = 0; i + 8 * kLanes <= size; i += 8 * kLanes)
            for (int v = 0; v < 8; ++v) sums[v] += load(data + i + v * kLanes);
    const double seconds = now() - start;
    keep(sums, 8);
    return double(rounds) * double(size / (8 * kLanes) * (8 * kLanes)) * 8 / seconds;
}

}  // namespace
}  // namespace KPL_ISA
}  // namespace kpl
