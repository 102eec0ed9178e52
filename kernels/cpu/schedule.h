// Whole runs of the schedule: storage, threads, and the copy in and out of the core's layouts.
#pragma once

#include "core.h"

namespace kpl {

// One problem as callers hold it. P is (n, c) row by row, already hardened; T any strides.
struct Problem {
    size_t n, d, c;
    Matrix X, T;
    const double* P;
    ScheduleOptions options;
    int threads;
};

// Where a run ended: W (d, c) and Z = X W (n, c), row by row.
struct Outcome {
    double* W;
    double* Z;
    ScheduleResult result;
};

// Both throw std::bad_alloc when the storage cannot be had, before anything is computed, and std::system_error when
// threads cannot.
void solve_dual(const Problem& problem, Outcome& outcome);
void solve_primal(const Problem& problem, Outcome& outcome);

}  // namespace kpl
