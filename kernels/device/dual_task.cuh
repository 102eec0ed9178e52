// One problem in the dual form as one block sees it: sizes, its rows, and where its state lies.
//
// State is float64 and class by class. Z, A, P, H are (c, ld) of the block's own rows, rest (ld); R (c, ldr) of all rows.
// For each warp `slot` sums: (Σ R∘H, Σ Z∘R) of each class, then (Σ |R∘H|, whether anything changed).
#pragma once

#include "device/problem.cuh"
#include "device/steps.cuh"
#include "device/team.cuh"

namespace kpl {

constexpr int kPairs = 4;        // pairs of sums that a warp adds up at once
constexpr int kFewClasses = 15;  // up to here every warp keeps the columns for itself and no thread waits for another

/// What the steps need to know of a column of W.
struct Column {
  double eta, inverse;   // of the present step
  double t;              // share of the start in W
  double squared;        // ‖w_j‖²
  double drift, before;  // ulps that its length may be off, after and before the last step
};

struct DualTask {
  const Problem* problem;
  int n, c;
  int first, rows;  // of this block
  int begin, end;   // rows of this warp, counted from the block's first
  int ld, slot;
  double scale;     // 1 / tau_i
  Residual R;
  double *Z, *A, *P, *H, *rest, *part;
  Column* columns;  // of this warp if there are few classes, else of the block
  StepSize* step;   // of this warp: in shared memory, for K needs the registers

  __device__ __forceinline__ const double* K() const { return problem->workspace; }
  __device__ __forceinline__ int d() const { return static_cast<int>(problem->d); }
  __device__ __forceinline__ bool few() const { return c <= kFewClasses; }
};

constexpr int kStepDoubles = sizeof(StepSize) / 8;

/// What a launch is asked for.
struct DualOptions {
  double lr, tau_i, movement, max_drift;
  long long iters;
  bool early_exit;
};

static __device__ __forceinline__ int slot_size(int c) { return (c + kPairs) / kPairs * 2 * kPairs; }

/// Up to an even count, so that every array starts at a multiple of 16 bytes.
static __device__ __forceinline__ long long even(long long count) { return (count + 1) / 2 * 2; }

/// Where things lie in a problem's workspace: K (n, n), R (c, n), the sums of the blocks, and for each block the state
/// that its shared memory has no room for. kpl_engine/cuda/ops/dual.py counts the same.
struct Workspace {
  double* start;
  long long n, c, most, count;  // most: rows of one block; count: blocks

  __device__ __forceinline__ double* rows() const { return start + even(n * n); }
  __device__ __forceinline__ double* slots() const { return rows() + even(c * n); }
  __device__ __forceinline__ double* rest(int rank) const {
    return slots() + count * slot_size(static_cast<int>(c)) + even(most) * rank;
  }
  __device__ __forceinline__ double* state(int which, int rank) const {
    return rest(0) + even(most) * count + even(c * most) * (which * count + rank);
  }
};

/// Hands out the block's shared memory; what no longer fits comes from the problem's workspace, if it may.
struct SharedMemory {
  double* next;
  long long left;  // doubles

  static __device__ __forceinline__ SharedMemory whole(int bytes) {
    return {reinterpret_cast<double*>(dynamic_shared()), bytes / 8};
  }
  __device__ __forceinline__ double* take(long long count) {
    double* taken = next;
    count = even(count);
    next += count;
    left -= count;
    return taken;
  }
  __device__ __forceinline__ double* take_or(long long count, double* otherwise) {
    return even(count) <= left ? take(count) : otherwise;
  }
};

}  // namespace kpl
