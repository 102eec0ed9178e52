// The closed form of docs/method.md 3c and the finishing of any solution: storage, threads, and passes over X.
//
// Rows are dealt out in chunks whose number depends on the shapes alone, and their sums are added in the order of the
// chunks: every number of threads gives the same bits.
#pragma once

#include "core.h"

namespace kpl {

// X (n, d), column_stride 1. `threads` is the most that may work.
struct Images {
    size_t n, d;
    Matrix X;
    int threads;
};

// Sums over images: mean (d), XtP (c, d) class by class; returns the mean of ‖x‖². P (n, c) row by row.
double moments(const Images& images, const double* P, size_t c, double* mean, double* XtP);

// lengths (n) <- ‖x_i‖²; equal rows get equal bits.
void squared_lengths(const Images& images, double* lengths);

enum class Ending : int { kReached, kVanished, kStalled, kUnfinished, kNotPositive };

struct FixedPointResult {
    Ending ending;
    int corrections;
    double residual;  // largest error of the class differences, relative to the largest difference
};

struct FixedPointTask {
    Images images;  // float32
    size_t c;
    const double* P;           // (n, c) row by row
    const double *mean, *XtP;  // as `moments` leaves them
    double tau_i;
    double tolerance;
    int max_corrections;
    double* W;  // (d, c) row by row on return
};

// Matrix, factor, first order and corrections as in kpl_engine/solver/closed_form.py, the derivation and the twin.
FixedPointResult fixed_point(const FixedPointTask& task);

// What a solution says about its images, from W (d, c) row by row; see _solution in kpl_engine/solver/proxies.py.
struct Finish {
    const double* W;
    double scale;  // discriminants = (W - its row means) * scale
    float *proxies, *discriminants;  // (d, c)
    float *logits, *scores;          // (n, c)
    int64_t* labels;                 // (n)
    bool* undecided;                 // (n)
};

// False when a number left the range of float32.
bool finish(const Images& images, size_t c, const Finish& out);

}  // namespace kpl
