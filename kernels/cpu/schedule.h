// Whole runs of the schedule: storage, threads, and the copy in and out of the core's layouts.
#pragma once

#include <functional>

#include "core.h"

namespace kpl {

// How pseudo labels are made from S = X T, see LabelTask; then rows above alpha are hardened.
struct LabelChoice {
    LabelMethod method;
    double tau_t, gamma;
    int64_t iters;
    const double* prior;
    double alpha;
};

// One problem as callers hold it; T any strides. P is (n, c) row by row, already hardened, or null: the labels are
// then made as `labels` says.
struct Problem {
    size_t n, d, c;
    Matrix X, T;
    const double* P;
    LabelChoice labels;
    ScheduleOptions options;
    int threads;
    std::function<bool()> stop = nullptr;  // asked about every 50 ms whether to give up; the outcome is then worthless
};

// Where a run ended: W (d, c) and Z = X W (n, c), row by row.
struct Outcome {
    double* W;
    double* Z;
    ScheduleResult result;
    double mass;           // Σ P after hardening
    size_t hardened;       // rows, where the labels were made here
    double label_seconds;  // spent on labels
    double seconds;        // spent on everything
};

// out (n, c) <- X T row by row, in float64; a row does not depend on its neighbours, to the bit.
void multiply_rows(const Matrix& X, size_t n, size_t d, const Matrix& T, size_t c, double* out);

// All throw std::bad_alloc when the storage cannot be had, before anything is computed, and std::system_error when
// threads cannot.
void solve_dual(const Problem& problem, Outcome& outcome);
void solve_primal(const Problem& problem, Outcome& outcome);

}  // namespace kpl
