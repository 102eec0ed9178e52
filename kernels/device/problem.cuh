// One problem after the encoder, and what came of it, as the kernels see them in device memory.
//
// Kernels take an array of problems; a block or a team of blocks solves one. Nothing about a problem is a kernel
// parameter, so one captured graph serves every n up to the capacity the arrays were made for. All fields are 8 bytes
// wide, in this order: kpl_engine/cuda/problems.py mirrors them. Arrays are C-contiguous, each aligned to 16 bytes at
// least; pointers are null where no kernel of the run uses them.
#pragma once

namespace kpl {

struct Record {              // zeroed before a run
    long long iterations, halvings;
    long long converged;     // 1: no later step could change a label
    long long frozen;        // 1: ended because lr had fallen too far to move anything
    long long num_hardened;  // rows that became one-hot
    long long form;          // 0 none, 1 dual, 2 primal, 3 closed form
    long long fault;         // 0 none; else why the closed form does not stand for the schedule
    long long fits;          // 1: every result is finite in float32
    double gradient_norm;
    double mass;             // Σ P after hardening
    double residual;
    double lr;
};

constexpr int kDualForm = 1, kPrimalForm = 2, kClosedForm = 3;

struct Problem {
    const float* X;            // (n, d) features, unit rows
    const float* E;            // (M, d) embedded descriptions, class by class
    const int* first;          // (c + 1) the descriptions of class j are first[j] .. first[j + 1]
    float* T;                  // (c, d) text proxies, class by class
    double* S;                 // (n, c) similarities X T
    double* P;                 // (n, c) labels, hardened
    double* W;                 // (c, d) vision proxies, class by class
    const double* prior;       // (c) class shares with sum 1; null: uniform
    float* scores;             // (M) mean cosine of each description
    int* kept;                 // (c, k) rows of E, best first; -1 where the class has no more
    double* workspace;         // as much as the largest op of the run asks for
    Record* record;
    float* out_proxies;        // (c, d)
    float* out_discriminants;  // (c, d)
    float* out_logits;         // (n, c)
    float* out_scores;         // (n, c)
    float* out_probabilities;  // (n, c) softmax(out_scores / tau)
    long long* out_labels;     // (n)
    unsigned char* out_undecided;  // (n)
    long long n, d, c, M, k;
};

static_assert(sizeof(Record) == 12 * 8 && sizeof(Problem) == 24 * 8, "mirrored in kpl_engine/cuda/problems.py");

// Counters of a problem for the barriers of its team of blocks, one for each op; zeroed before a run.
constexpr int kCounters = 64;  // 256 bytes, so that no two problems share a cache line

}  // namespace kpl
