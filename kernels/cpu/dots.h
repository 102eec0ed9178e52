// Inner products of rows of X with a few columns, both along memory: z[j][i] = x_i · V_j.
//
// Flops: 2 rows columns width. Rows are read once per 4 columns, 4 at a time (8 with one column), so that each loaded
// vector serves several sums; float32 rows are widened as they are loaded.
#pragma once

#include "simd.h"

namespace kpl {
namespace KPL_ISA {
namespace {

// z[j][i] = x_i · V_j for M rows and N columns.
template <int M, int N, typename Number>
void dot_block(const Number* X, ptrdiff_t stride, const double* V, size_t ldv, size_t width, double* z, size_t ldz) {
    Vec sums[M][N] = {};
    for (size_t k = 0; k < width; k += kLanes) {
        Vec x[M];
        for (int i = 0; i < M; ++i) x[i] = load(X + i * stride + k);
        for (int j = 0; j < N; ++j) {
            const Vec v = load(V + j * ldv + k);
            for (int i = 0; i < M; ++i) sums[i][j] += x[i] * v;
        }
    }
    for (int j = 0; j < N; ++j)
        for (int i = 0; i < M; ++i) z[j * ldz + i] = sum(sums[i][j]);
}

template <int N, typename Number>
void dot_rows(const Number* X, ptrdiff_t stride, size_t rows, const double* V, size_t ldv, size_t width, double* z,
              size_t ldz) {
    constexpr int kRows = N == 1 ? 8 : 4;
    size_t i = 0;
    for (; i + kRows <= rows; i += kRows) dot_block<kRows, N>(X + ptrdiff_t(i) * stride, stride, V, ldv, width, z + i, ldz);
    for (; i < rows; ++i) dot_block<1, N>(X + ptrdiff_t(i) * stride, stride, V, ldv, width, z + i, ldz);
}

// z (columns, ldz): products of `rows` rows of X with the rows of V.
template <typename Number>
void dot_columns(const Number* X, ptrdiff_t stride, size_t rows, const double* V, size_t ldv, size_t columns,
                 size_t width, double* z, size_t ldz) {
    constexpr size_t kColumns = 4;
    for (; columns >= kColumns; columns -= kColumns, V += kColumns * ldv, z += kColumns * ldz)
        dot_rows<kColumns>(X, stride, rows, V, ldv, width, z, ldz);
    switch (columns) {
        case 1: dot_rows<1>(X, stride, rows, V, ldv, width, z, ldz); break;
        case 2: dot_rows<2>(X, stride, rows, V, ldv, width, z, ldz); break;
        case 3: dot_rows<3>(X, stride, rows, V, ldv, width, z, ldz); break;
        default: break;
    }
}

}  // namespace
}  // namespace KPL_ISA
}  // namespace kpl
