// The rules that both forms of the schedule share (docs/method.md 3, 3a): the step size and its halving, when the steps
// left are proven not to matter, the length of a column after a step and the drift of the dual form. Plain arithmetic on
// a few numbers: every thread that calls these with the same numbers gets the same bits.
//
//   eta = lr / (n tau_i), lr halves whenever ‖G‖_F grew
//   s_j² = ‖w_j‖² - 2 eta Σ_i Z_ij R_ij + eta² Σ_i R_ij H_ij
#pragma once

#include "device/platform.cuh"

namespace kpl {

// Σ R∘H is ‖G‖² less the cancellation of its terms. Below this share of them too few digits are left to decide whether
// the norm grew: CLIP features give 0.2 to 1, images nearly alike 1e-4 to 1e-2. Then ‖G_j‖² is computed from Xᵀ R.
constexpr double kFewDigits = 0.05;
constexpr double kFlat = 1e-6;  // relative change of the norm in the last step below which the run has settled

/// The step size and what its rule remembers. Squares instead of norms: a root is then only needed where they grew.
struct StepSize {
  double lr;
  double scale;           // 1 / (n tau_i)
  double square, before;  // ‖G‖_F² of this step and of the one before; infinity at first
  double slack;           // how far ‖G‖_F can grow while no column of W moves by more than `movement`
  double movement;        // 0: take every step
  long long halvings;
};

static __device__ __forceinline__ double infinity() { return __longlong_as_double(0x7ff0000000000000ll); }

/// How far the steps that are left out may move a unit column: `movement` of the usual scale of the class differences,
/// mass / n, at most of 1. Zero, take every step, where a text proxy is zero: the proof needs unit columns.
static __device__ __forceinline__ double allowed_movement(double movement, double mass, long long n,
                                                          bool has_zero_column) {
  const double share = mass / static_cast<double>(n);
  return has_zero_column ? 0.0 : movement * (share < 1.0 ? share : 1.0);
}

/// `longest_square` is max ‖x_i‖². |Δ softmax| <= |ΔZ| / tau_i and ‖X‖ <= sqrt(n) max‖x_i‖ give the slack.
static __device__ __forceinline__ StepSize first_step(double lr, double tau_i, long long n, long long c,
                                                      double longest_square, double movement) {
  const double rows = static_cast<double>(n);
  const double slack = rows * sqrt(static_cast<double>(c)) * longest_square * movement / tau_i;
  return {lr, 1.0 / (rows * tau_i), infinity(), infinity(), slack, movement, 0};
}

/// eta of the next step; lr is halved if the norm grew. A negative square is rounding of zero, NaN stays NaN.
static __device__ __forceinline__ double next_eta(StepSize& step, double square) {
  square = square < 0.0 ? 0.0 : square;
  // The roots decide, as published: squares an ulp apart may have the same one.
  if (square > step.square && sqrt(square) > sqrt(step.square)) {
    step.lr *= 0.5;
    ++step.halvings;
  }
  step.before = step.square;
  step.square = square;
  return step.lr * step.scale;
}

/// Whether the `left` steps to come are proven not to move any unit column by more than `movement`: lr never grows, and
/// a step moves a unit column by at most 2 eta ‖g_j‖. Not before the first step, which may start from other lengths.
static __device__ __forceinline__ bool is_frozen(const StepSize& step, long long done, long long left) {
  if (!(step.movement > 0.0) || done == 0) return false;
  const double most = 2.0 * static_cast<double>(left) * step.lr * step.scale * (sqrt(step.square) + step.slack);
  return most <= step.movement;
}

/// Whether the norm had settled, |‖G‖ - ‖G_before‖| <= 1e-6 ‖G‖. False before the first step.
static __device__ __forceinline__ bool is_flat(const StepSize& step) {
  const double norm = sqrt(step.square);
  return !(norm > 0.0) ? norm == 0.0 : fabs(norm - sqrt(step.before)) <= kFlat * norm;
}

/// A column after a step: what its entries are moved by and divided by.
struct ColumnStep {
  double eta;      // 0 for a column that vanished: it keeps its direction
  double inverse;  // 1 / s_j
  double drift;    // ulps by which ‖w_j‖ may differ from 1
};

/// `squared` is ‖w_j‖² before, and after.
static __device__ __forceinline__ ColumnStep step_column(double eta, double rh, double zr, double drift,
                                                         double& squared) {
  const double squared_step = eta * eta * rh;
  const double length = squared - 2.0 * eta * zr + squared_step;
  if (!(length > 0.0)) return {0.0, 1.0, drift + 1.0 + squared_step};
  const double inverse = rsqrt(length);
  squared = 1.0;
  return {eta, inverse, (drift + 1.0 + squared_step) * inverse * inverse};
}

}  // namespace kpl
