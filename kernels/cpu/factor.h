// The matrix of the closed form and its Cholesky factor, in float32: the kernels of factor.cpp.
//
// A symmetric (m, m) matrix is held as its upper half, row by row in `ld` floats, and factored in place into U with
// UᵀU = A. Blocks are kWide columns. Rows of U are then at once what a product wants: kWide columns side by side for
// each k. Gram matrix m² K flops, factor m³ / 3.
//
// Float32, because the matrix is only the slope of corrections whose end it does not decide (docs/method.md 3c, and
// kpl_engine/solver/closed_form.py): twice the flops a second of float64, and half the memory.
#pragma once

#include "simd.h"

namespace kpl {
namespace KPL_ISA {
namespace {

constexpr int kFloats = 2 * kLanes;
constexpr size_t kWide = size_t(kFloats) * kPanelVectors;

typedef float FloatVec __attribute__((vector_size(kFloats * 4)));
typedef float LooseFloatVec __attribute__((vector_size(kFloats * 4), aligned(4), may_alias));

inline FloatVec load_floats(const float* at) { return *reinterpret_cast<const LooseFloatVec*>(at); }
inline void store_floats(float* at, FloatVec value) { *reinterpret_cast<LooseFloatVec*>(at) = value; }
inline FloatVec all_floats(float value) { return FloatVec{} + value; }

// C[i][v] += sign Σ_k A[k][i] B[k][v] for N rows and V vectors: N V sums stay in registers.
template <int V, int N>
void update_tile(const float* A, size_t lda, const float* B, size_t ldb, size_t depth, float sign, float* C,
                 size_t ldc) {
    FloatVec sums[N][V] = {};
    for (size_t k = 0; k < depth; ++k) {
        FloatVec b[V];
        for (int v = 0; v < V; ++v) b[v] = load_floats(B + k * ldb + v * kFloats);
        for (int i = 0; i < N; ++i) {
            const FloatVec a = all_floats(A[k * lda + i]);
            for (int v = 0; v < V; ++v) sums[i][v] += a * b[v];
        }
    }
    for (int i = 0; i < N; ++i)
        for (int v = 0; v < V; ++v) {
            float* at = C + i * ldc + v * kFloats;
            store_floats(at, load_floats(at) + sign * sums[i][v]);
        }
}

template <int V>
void update_rows(const float* A, size_t lda, const float* B, size_t ldb, size_t depth, size_t rows, float sign,
                 float* C, size_t ldc) {
    switch (rows) {
        case 1: update_tile<V, 1>(A, lda, B, ldb, depth, sign, C, ldc); break;
        case 2: update_tile<V, 2>(A, lda, B, ldb, depth, sign, C, ldc); break;
        case 3: update_tile<V, 3>(A, lda, B, ldb, depth, sign, C, ldc); break;
        default: update_tile<V, 4>(A, lda, B, ldb, depth, sign, C, ldc); break;
#if defined(__AVX512F__) || defined(__aarch64__)
        case 5: update_tile<V, 5>(A, lda, B, ldb, depth, sign, C, ldc); break;
        case 6: update_tile<V, 6>(A, lda, B, ldb, depth, sign, C, ldc); break;
#endif
    }
}

// One block, `rows` by `vectors`; of a block on the diagonal only what touches its upper half.
void update(const float* A, size_t lda, const float* B, size_t ldb, size_t depth, size_t rows, int vectors,
            bool diagonal, float sign, float* C, size_t ldc) {
    for (size_t i = 0; i < rows; i += kMaxColumns) {
        const size_t count = rows - i < size_t(kMaxColumns) ? rows - i : size_t(kMaxColumns);
        const int first = diagonal ? int(i) / kFloats : 0;
        with_width(vectors - first, [&](auto width) {
            update_rows<decltype(width)::value>(A + i, lda, B + first * kFloats, ldb, depth, count, sign,
                                                C + i * ldc + first * kFloats, ldc);
        });
    }
}

// The block on the diagonal in place, whole vectors to the right of each diagonal entry. False unless positive.
bool factor_diagonal(float* C, size_t ldc, size_t rows, int vectors) {
    for (size_t j = 0; j < rows; ++j) {
        float* row = C + j * ldc;
        const float pivot = row[j];
        if (!(pivot > 0.0f)) return false;
        const int first = int(j) / kFloats;
        const FloatVec inverse = all_floats(1.0f / __builtin_sqrtf(pivot));
        for (int v = first; v < vectors; ++v)
            store_floats(row + v * kFloats, load_floats(row + v * kFloats) * inverse);
        for (size_t i = j + 1; i < rows; ++i) {
            const FloatVec factor = all_floats(row[i]);
            float* below = C + i * ldc;
            for (int v = int(i) / kFloats; v < vectors; ++v)
                store_floats(below + v * kFloats,
                             load_floats(below + v * kFloats) - factor * load_floats(row + v * kFloats));
        }
    }
    return true;
}

template <int V>
void divide_columns(const float* U, size_t ldu, size_t rows, float* C, size_t ldc) {
    for (size_t j = 0; j < rows; ++j) {
        FloatVec sums[V];
        for (int v = 0; v < V; ++v) sums[v] = load_floats(C + j * ldc + v * kFloats);
        for (size_t k = 0; k < j; ++k) {
            const FloatVec factor = all_floats(U[k * ldu + j]);
            for (int v = 0; v < V; ++v) sums[v] -= factor * load_floats(C + k * ldc + v * kFloats);
        }
        const FloatVec inverse = all_floats(1.0f / U[j * ldu + j]);
        for (int v = 0; v < V; ++v) store_floats(C + j * ldc + v * kFloats, sums[v] * inverse);
    }
}

// C <- U^-T C for the block to the right of the diagonal block U, both (rows, .).
void divide(const float* U, size_t ldu, size_t rows, int vectors, float* C, size_t ldc) {
    with_width(vectors, [&](auto width) { divide_columns<decltype(width)::value>(U, ldu, rows, C, ldc); });
}

}  // namespace
}  // namespace KPL_ISA
}  // namespace kpl
