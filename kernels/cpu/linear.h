// Kernels of the closed form (docs/method.md 3c): passes over rows of X (n, d) and triangular solves, all in float64.
//
//   project, accumulate   2 n d c flops each, 4 or 8 bytes of X per entry, read once per group of columns
//   solve                 2 m² c flops and two passes over the upper half of U, 4 m² bytes in all
//
// Every column of a result is computed by the same sequence of operations wherever it stands among the others, so
// that two classes with equal labels stay equal to the last bit. multiply() of product.h does not promise that.
#pragma once

#include "dots.h"
#include "factor.h"
#include "linear_kernels.h"
#include "product.h"

namespace kpl {
namespace KPL_ISA {
namespace {

template <int V, int N, typename Number>
void accumulate_block(const Number* B, ptrdiff_t ldb, size_t depth, const double* A, size_t lda, double* out,
                      size_t ldo) {
    Vec sums[N][V];
    for (int j = 0; j < N; ++j)
        for (int v = 0; v < V; ++v) sums[j][v] = load(out + j * ldo + v * kLanes);
    for (size_t k = 0; k < depth; ++k) {
        Vec b[V];
        for (int v = 0; v < V; ++v) b[v] = load(B + ptrdiff_t(k) * ldb + v * kLanes);
        for (int j = 0; j < N; ++j)
            for (int v = 0; v < V; ++v) sums[j][v] += all(A[j * lda + k]) * b[v];
    }
    for (int j = 0; j < N; ++j)
        for (int v = 0; v < V; ++v) store(out + j * ldo + v * kLanes, sums[j][v]);
}

// out[j][v] += Σ_k A[j][k] B[k][v] over the columns of one panel of V vectors.
template <int V, typename Number>
void accumulate_panel(const Number* B, ptrdiff_t ldb, size_t depth, const double* A, size_t lda, size_t columns,
                      double* out, size_t ldo) {
    for (; columns >= 4; columns -= 4, A += 4 * lda, out += 4 * ldo)
        accumulate_block<V, 4>(B, ldb, depth, A, lda, out, ldo);
    switch (columns) {
        case 1: accumulate_block<V, 1>(B, ldb, depth, A, lda, out, ldo); break;
        case 2: accumulate_block<V, 2>(B, ldb, depth, A, lda, out, ldo); break;
        case 3: accumulate_block<V, 3>(B, ldb, depth, A, lda, out, ldo); break;
        default: break;
    }
}

template <typename Number>
void accumulate_rows(const Number* B, ptrdiff_t ldb, size_t depth, size_t width, const double* A, size_t lda,
                     size_t columns, double* out, size_t ldo) {
    for (size_t at = 0; at < width; at += kPanel) {
        const size_t rest = width - at < kPanel ? width - at : kPanel;
        with_width(int(rest / kLanes), [&](auto vectors) {
            accumulate_panel<decltype(vectors)::value>(B + at, ldb, depth, A, lda, columns, out + at, ldo);
        });
    }
}

template <typename Number>
void square_rows(const Number* X, ptrdiff_t stride, size_t rows, size_t width, double* out) {
    for (size_t i = 0; i < rows; ++i) {
        const Number* row = X + ptrdiff_t(i) * stride;
        Vec total = {};
        for (size_t k = 0; k < width; k += kLanes) {
            const Vec x = load(row + k);
            total += x * x;
        }
        out[i] = sum(total);
    }
}

// The diagonal block of a solve, `rows` unknowns of one column in place; U from (0, 0) of the block on.
void solve_block_transposed(const float* U, size_t ldu, size_t rows, double* y) {
    for (size_t k = 0; k < rows; ++k) {
        y[k] /= double(U[k * ldu + k]);
        for (size_t i = k + 1; i < rows; ++i) y[i] -= double(U[k * ldu + i]) * y[k];
    }
}

void solve_block(const float* U, size_t ldu, size_t rows, double* y) {
    for (size_t k = rows; k-- > 0;) {
        y[k] /= double(U[k * ldu + k]);
        for (size_t i = 0; i < k; ++i) y[i] -= double(U[i * ldu + k]) * y[k];
    }
}

// y <- U^-T y, then y <- U^-1 y, a panel of unknowns at a time: sums of the rows above the panel on the way down, dot
// products to its right on the way up, both along the rows of U. y is zero from m to the end of a vector.
void solve(const Factor& factor, double* y, size_t ldy, size_t columns, double* work) {
    const float* U = factor.data;
    const size_t m = factor.size, ldu = factor.ld;
    for (size_t first = 0; first < m; first += kPanel) {
        for (size_t k = 0; k < columns * kPanel; ++k) work[k] = 0.0;
        accumulate_panel<kPanelVectors>(U + first, ptrdiff_t(ldu), first, y, ldy, columns, work, kPanel);
        const size_t rows = m - first < kPanel ? m - first : kPanel;
        for (size_t j = 0; j < columns; ++j) {
            double* part = y + j * ldy + first;
            for (size_t i = 0; i < rows; ++i) part[i] -= work[j * kPanel + i];
            solve_block_transposed(U + first * ldu + first, ldu, rows, part);
        }
    }
    for (size_t end = (m + kPanel - 1) / kPanel * kPanel; end > 0; end -= kPanel) {
        const size_t first = end - kPanel, last = end < m ? end : m;
        const size_t width = (m - last + kLanes - 1) / kLanes * kLanes;
        dot_columns(U + first * ldu + last, ptrdiff_t(ldu), last - first, y + last, ldy, columns, width, work, kPanel);
        for (size_t j = 0; j < columns; ++j) {
            double* part = y + j * ldy + first;
            for (size_t i = 0; i < last - first; ++i) part[i] -= work[j * kPanel + i];
            solve_block(U + first * ldu + first, ldu, last - first, part);
        }
    }
}

void project(const RowBlock& X, size_t width, const double* V, size_t ldv, size_t columns, double* z, size_t ldz) {
    if (X.is_float32)
        dot_columns(static_cast<const float*>(X.data), X.stride, X.rows, V, ldv, columns, width, z, ldz);
    else
        dot_columns(static_cast<const double*>(X.data), X.stride, X.rows, V, ldv, columns, width, z, ldz);
}

void accumulate(const RowBlock& X, size_t width, const double* A, size_t lda, size_t columns, double* out,
                size_t ldo) {
    if (X.is_float32)
        accumulate_rows(static_cast<const float*>(X.data), X.stride, X.rows, width, A, lda, columns, out, ldo);
    else
        accumulate_rows(static_cast<const double*>(X.data), X.stride, X.rows, width, A, lda, columns, out, ldo);
}

void squares(const RowBlock& X, size_t width, double* out) {
    if (X.is_float32)
        square_rows(static_cast<const float*>(X.data), X.stride, X.rows, width, out);
    else
        square_rows(static_cast<const double*>(X.data), X.stride, X.rows, width, out);
}

void soften(double* Z, size_t ldz, size_t classes, size_t count, double tau) {
    const Vec scale = all(1.0 / tau);
    for (size_t i = 0; i < count; i += kLanes) {
        Vec best = load(Z + i);
        for (size_t j = 1; j < classes; ++j) {
            const Vec z = load(Z + j * ldz + i);
            best = select(z > best, z, best);
        }
        Vec total = {};
        for (size_t j = 0; j < classes; ++j) {
            const Vec power = exp<false>((load(Z + j * ldz + i) - best) * scale);
            store(Z + j * ldz + i, power);
            total += power;
        }
        const Vec inverse = 1.0 / total;
        for (size_t j = 0; j < classes; ++j) store(Z + j * ldz + i, load(Z + j * ldz + i) * inverse);
    }
}

const LinearKernels linear_kernels = {project, accumulate, squares, soften, solve, update, factor_diagonal, divide};

}  // namespace
}  // namespace KPL_ISA
}  // namespace kpl
