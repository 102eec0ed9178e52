// Text Proxy Optimization: sums over images, scores of descriptions, means of the kept ones (docs/method.md 1).
//
//   sum_rows    Σ_i x_i (d) of a block of rows (n, d) float32; 4 n d bytes read once, 4 n d flops with the lengths
//   score_rows  <e, mean> of each row of E (M, d) float32; 4 M d bytes, 2 M d flops
//   unit_mean   the mean of k rows of E at unit length
//
// All sums are float64. They are made of vectors with the same lanes and the same order for every row, so two equal
// descriptions score the same to the bit wherever they stand.
#pragma once

#include "core.h"
#include "simd.h"

namespace kpl {
namespace KPL_ISA {
namespace {

constexpr double kCancelled = 1e-6;  // unit float32 rows that cancel leave a residue of about 1e-7, not a direction

// Columns k and on of a row of d numbers as a vector; zeros past the end.
inline Vec load_tail(const float* row, size_t k, size_t d) {
    double part[kLanes] = {};
    for (size_t lane = 0; k + lane < d; ++lane) part[lane] = double(row[k + lane]);
    return load(part);
}

inline Vec load_columns(const float* row, size_t k, size_t d) {
    return k + kLanes <= d ? load(row + k) : load_tail(row, k, d);
}

// sums += N rows; whether all of them are finite and at most as long as sqrt(longest).
template <int N>
bool add_rows(const float* rows, ptrdiff_t stride, size_t d, double longest, double* sums) {
    Vec squares[N] = {};
    for (size_t k = 0; k < d; k += kLanes) {
        Vec total = {};
        for (int i = 0; i < N; ++i) {
            const Vec x = load_columns(rows + i * stride, k, d);
            total += x;
            squares[i] += x * x;
        }
        store(sums + k, load(sums + k) + total);
    }
    bool fits = true;
    for (int i = 0; i < N; ++i) fits &= sum(squares[i]) <= longest;  // false for NaN
    return fits;
}

// sums (d in whole vectors) <- Σ_i x_i.
inline bool sum_rows(const float* rows, ptrdiff_t stride, size_t count, size_t d, double longest, double* sums) {
    for (size_t k = 0; k < d; k += kLanes) store(sums + k, Vec{});
    bool fits = true;
    size_t i = 0;
    for (; i + 4 <= count; i += 4) fits &= add_rows<4>(rows + ptrdiff_t(i) * stride, stride, d, longest, sums);
    for (; i < count; ++i) fits &= add_rows<1>(rows + ptrdiff_t(i) * stride, stride, d, longest, sums);
    return fits;
}

// mean (d in whole vectors, zeros in the padding).
inline double score_of(const float* row, size_t d, const double* mean) {
    Vec total[4] = {};
    size_t k = 0;
    for (; k + 4 * kLanes <= d; k += 4 * kLanes)
        for (int v = 0; v < 4; ++v) total[v] += load(row + k + v * kLanes) * load(mean + k + v * kLanes);
    for (int v = 0; k < d; k += kLanes, ++v) total[v] += load_columns(row, k, d) * load(mean + k);
    return sum((total[0] + total[1]) + (total[2] + total[3]));
}

inline void score_rows(const float* E, size_t count, size_t d, const double* mean, double* scores) {
    for (size_t i = 0; i < count; ++i) scores[i] = score_of(E + i * d, d, mean);
}

// out (d in whole vectors) <- Σ rows / k; its length.
inline double mean_of(const float* E, size_t d, const int64_t* rows, size_t k, double* out) {
    Vec squares = {};
    for (size_t at = 0; at < d; at += kLanes) {
        Vec total = {};
        for (size_t i = 0; i < k; ++i) total += load_columns(E + size_t(rows[i]) * d, at, d);
        total /= double(k);
        store(out + at, total);
        squares += total * total;
    }
    return __builtin_sqrt(sum(squares));
}

// The mean of the `k` rows named in `best`, best first, at unit length; of the best alone where they cancel.
inline void unit_mean(const float* E, size_t d, const int64_t* best, size_t k, double* out) {
    double length = mean_of(E, d, best, k, out);
    if (!(length > kCancelled)) length = mean_of(E, d, best, 1, out);
    for (size_t at = 0; at < d; at += kLanes) store(out + at, load(out + at) / length);
}

}  // namespace
}  // namespace KPL_ISA
}  // namespace kpl
