// The product of a tall panel with a few columns: the inner kernel of everything that is not a softmax.
//
// out[j][v] (+)= sum over k of A[j][k] B[k][v],   j < N columns, v < V vectors, k < depth. B is float64, or float32 widened as it is
// loaded.
// Flops: 2 depth N V lanes. Bytes from B: 8 depth V lanes once per N columns; A is read one number at a time.
// With V = kPanelVectors and N = kMaxColumns the sums fill the registers and each loaded vector of B serves N
// multiply-adds. Few columns would leave too few independent sums to hide the latency of a multiply-add
// (4 cycles, 2 a cycle), so k is then unrolled over several sets of sums, added in a fixed order.
#pragma once

#include "simd.h"

namespace kpl {
namespace KPL_ISA {
namespace {

constexpr size_t kDepth = 128;  // rows of B taken at once: 32 KiB of a panel with AVX-512 stay in the L1 cache

template <int V, int N, typename Number>
void multiply_block(const Number* B, size_t ldb, size_t depth, const double* A, size_t lda, double* out, size_t ldo,
                    bool add) {
    constexpr int kSets = V * N >= 8 ? 1 : (8 + V * N - 1) / (V * N);
    Vec sums[kSets][N][V] = {};
    size_t k = 0;
    for (; k + kSets <= depth; k += kSets)
        for (int set = 0; set < kSets; ++set) {
            Vec b[V];
            for (int v = 0; v < V; ++v) b[v] = load(B + (k + set) * ldb + v * kLanes);
            for (int j = 0; j < N; ++j)
                for (int v = 0; v < V; ++v) sums[set][j][v] += all(A[j * lda + k + set]) * b[v];
        }
    for (; k < depth; ++k)
        for (int j = 0; j < N; ++j)
            for (int v = 0; v < V; ++v) sums[0][j][v] += all(A[j * lda + k]) * load(B + k * ldb + v * kLanes);
    for (int j = 0; j < N; ++j)
        for (int v = 0; v < V; ++v) {
            Vec total = sums[0][j][v];
            for (int set = 1; set < kSets; ++set) total += sums[set][j][v];
            double* at = out + j * ldo + v * kLanes;
            store(at, add ? load(at) + total : total);
        }
}

template <int V, typename Number>
void multiply_columns(const Number* B, size_t ldb, size_t depth, const double* A, size_t lda, size_t columns,
                      double* out, size_t ldo, bool add) {
    for (; columns >= size_t(kMaxColumns); columns -= kMaxColumns, A += kMaxColumns * lda, out += kMaxColumns * ldo)
        multiply_block<V, kMaxColumns>(B, ldb, depth, A, lda, out, ldo, add);
    switch (columns) {
        case 1: multiply_block<V, 1>(B, ldb, depth, A, lda, out, ldo, add); break;
        case 2: multiply_block<V, 2>(B, ldb, depth, A, lda, out, ldo, add); break;
        case 3: multiply_block<V, 3>(B, ldb, depth, A, lda, out, ldo, add); break;
        case 4: multiply_block<V, 4>(B, ldb, depth, A, lda, out, ldo, add); break;
        case 5: multiply_block<V, 5>(B, ldb, depth, A, lda, out, ldo, add); break;
        default: break;
    }
}

// One panel of `vectors` vectors against any number of columns; B (depth, ldb), A (columns, lda), out (columns, ldo).
template <typename Number>
void multiply(int vectors, const Number* B, size_t ldb, size_t depth, const double* A, size_t lda,
                     size_t columns, double* out, size_t ldo, bool add) {
    for (size_t k = 0; k < depth || k == 0; k += kDepth) {
        const size_t rows = depth - k < kDepth ? depth - k : kDepth;
        const bool keep = add || k > 0;
        const Number* b = B + k * ldb;
        const double* a = A + k;
        with_width(vectors, [&](auto width) {
            multiply_columns<decltype(width)::value>(b, ldb, rows, a, lda, columns, out, ldo, keep);
        });
    }
}

}  // namespace
}  // namespace KPL_ISA
}  // namespace kpl
