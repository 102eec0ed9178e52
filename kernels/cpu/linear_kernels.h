// What linear.cpp asks of each instruction set: passes over rows of features, and triangular solves. No code.
#pragma once

#include <stddef.h>

namespace kpl {

// Some rows of X, float32 or float64, each readable over the whole padded width.
struct RowBlock {
    const void* data;
    ptrdiff_t stride;
    size_t rows;
    bool is_float32;
};

// Upper triangular U with UᵀU = A, float32, (size, ld), rows readable over whole panels; nothing below the diagonal is used.
struct Factor {
    const float* data;
    size_t size, ld;
};

// Columns are stored one after the other: V (columns, ldv), z (columns, ldz).
struct LinearKernels {
    // z[j][i] = x_i · V_j
    void (*project)(const RowBlock& X, size_t width, const double* V, size_t ldv, size_t columns, double* z,
                    size_t ldz);
    // out[j] += Σ_i A[j][i] x_i
    void (*accumulate)(const RowBlock& X, size_t width, const double* A, size_t lda, size_t columns, double* out,
                       size_t ldo);
    // out[i] = ‖x_i‖²
    void (*squares)(const RowBlock& X, size_t width, double* out);
    // Z[.][i] <- softmax(Z[.][i] / tau) for i < count, count rounded up to whole vectors
    void (*soften)(double* Z, size_t ldz, size_t classes, size_t count, double tau);
    // y_j <- A^-1 y_j; work (columns, panel)
    void (*solve)(const Factor& U, double* y, size_t ldy, size_t columns, double* work);
    // Float32, see factor.h; blocks are 2 * Kernels::panel columns, vectors 2 * Kernels::lanes.
    void (*update)(const float* A, size_t lda, const float* B, size_t ldb, size_t depth, size_t rows, int vectors,
                   bool diagonal, float sign, float* C, size_t ldc);
    bool (*factor_diagonal)(float* C, size_t ldc, size_t rows, int vectors);
    void (*divide)(const float* U, size_t ldu, size_t rows, int vectors, float* C, size_t ldc);
};

}  // namespace kpl
