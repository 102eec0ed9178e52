// Pseudo labels and text proxies, one call each: storage, and the copy in and out of the core's layouts.
#pragma once

#include "core.h"

namespace kpl {

// Doubles that a LabelTask works in.
size_t label_work(size_t c, size_t ld);

// S any strides; labels (n, c) row by row, float32 or float64.
struct LabelCall {
    size_t n, c;
    Matrix S;
    LabelMethod method;
    double tau_t, gamma;
    int64_t iters;
    const double* prior;
    void* labels;
    bool labels_are_float32;
};

// Whether S is free of NaN. If not, nothing is written, except by softmax, which gives NaN in those rows.
// Throws std::bad_alloc when the storage cannot be had, before anything is computed.
bool refine_labels(const LabelCall& call);

// X (n, d) float32 with any strides; E (M, d) row by row, the rows of class j from offsets[j] to offsets[j + 1].
struct TextCall {
    size_t n, d, c;
    Matrix X;
    const float* E;
    const int64_t* offsets;
    size_t k;        // kept of each class, at least 1
    double longest;  // what a row's length should not exceed
    int threads;
    double* scores;  // (M)
    int64_t* kept;   // min(k, m_j) of each class, one class after the other, best first
    float* T;        // (d, c) row by row
};

// Whether every row of X is finite and no longer than `longest`; the results are only good if so.
// The same bits for every number of threads: rows are summed in fixed blocks, the blocks in their order.
// Throws std::bad_alloc when the storage cannot be had, std::system_error when threads cannot.
bool select_text_proxies(const TextCall& call);

// The check of `select_text_proxies` alone.
bool rows_fit(const Matrix& X, size_t n, size_t d, double longest, int threads);

}  // namespace kpl
