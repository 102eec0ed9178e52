// Sums over images that the closed form starts from, and whether it stands for the schedule: moments_of, regime_fault and
// schedule_fault of kpl_engine/solver (docs/method.md 3c). Labels are multiplied only once the cheaper sums have passed.
#pragma once

#include "device/conjugate_fit.cuh"

namespace kpl::conjugate {

enum Fault {  // as in kernels/cpu/closed_form.h, and from 16 on why it was not tried; texts in ops/closed_form.py
  kReached,
  kVanished,
  kStalled,
  kUnfinished,
  kNotPositive,
  kHardened = 16,
  kNoDirection,
  kHeavyLabels,
  kShortSteps,
  kFewImages,
  kFewSteps,
  kTooManyClasses,
};

constexpr double kMaxMassRatio = 0.5, kMinStep = 16.0, kLogSettled = 25.0;  // as in the twin

struct Schedule {
  double lr;
  long long iters;
  bool must_be_reached;
};

struct Outcome {
  int fault;
  int corrections;
  double figure;  // the residual, or the figure that the refused condition is about
};

struct Sums {
  double mass, heaviest, mean_square;
};

/// mean <- the mean feature; mu and ridge from it. Returns class masses and the mean of ‖x_i‖².
static __device__ __noinline__ Sums sum_features(Fit& fit) {
  const int c = fit.c;
  for (int j = warp(); j < c; j += kWarps) {
    double mass = 0.0;
    for (long long i = lane(); i < fit.rows.count; i += KPL_WARP) mass += fit.P[i * c + j];
    mass = warp_sum(mass);
    if (lane() == 0) own_board(fit.team)[j] = mass;
  }
  double square = 0.0;
  double* ones = static_cast<double*>(fit.rows.values);
  each_tile(fit.rows, [&](const float* tile, int start, int count) {
    for (int i = thread(); i < count; i += kThreads) ones[i] = 1.0;
    for (int e = thread(); e < count * fit.rows.padded; e += kThreads) square += double(tile[e]) * double(tile[e]);
    __syncthreads();
    accumulate(fit.rows, tile, count, ones, 1, own_partial<double>(fit), start > 0);
  });
  block_sums(fit.team, 1, 0, kThreads, own_board(fit.team) + c, [&](int, int) { return square; });
  collect(fit.team, c + 1, 0);
  Sums found = {0.0, 0.0, fit.team.totals[c] / fit.n};
  for (int j = 0; j < c; ++j) {
    found.mass += fit.team.totals[j];
    found.heaviest = larger(found.heaviest, fit.team.totals[j]);
  }
  each_sum<double>(fit, 1, [&](int, int k, double sum) { fit.mean[k] = sum / fit.n; });
  __syncthreads();
  team_sums(fit.team, 1, fit.first_column, fit.last_column, [&](int, int k) { return fit.mean[k] * fit.mean[k]; });
  if (thread() == 0) {
    fit.mu = sqrt(fit.team.totals[0]);
    fit.ridge = fit.tau_i * fit.mu;
  }
  __syncthreads();
  return found;
}

/// Why the labels are not in the regime, or the steps would not arrive; regime_fault and schedule_fault of the twin.
static __device__ __forceinline__ Outcome refuse(const Fit& fit, const Sums& sums, const Schedule& schedule) {
  constexpr double kFloatEpsilon = 1.1920928955078125e-7;
  const double c = fit.c, mu = fit.mu;
  if (!(mu > kFloatEpsilon * sqrt(sums.mean_square))) return {kNoDirection, 0, mu};
  const double ratio = c * sums.heaviest / fit.n;
  if (ratio > kMaxMassRatio) return {kHeavyLabels, 0, ratio};
  if (!schedule.must_be_reached) return {kReached, 0, 0.0};
  const double spread = fmax(sums.mean_square - mu * mu, 0.0), r = schedule.lr * mu / (fit.tau_i * c);
  if (r < kMinStep) return {kShortSteps, 0, r};
  if (fit.n < 4.0 * c) return {kFewImages, 0, fit.n};
  const double rate = fmin(2.0 / (1.0 + r), 1.0 / (4.0 * (1.0 + spread / (mu * fit.tau_i))));
  if (static_cast<double>(schedule.iters) * log1p(rate) < kLogSettled) return {kFewSteps, 0, rate};
  return {kReached, 0, 0.0};
}

/// XtP <- Xᵀ P, and x_i · u of every row.
static __device__ __noinline__ void sum_labels(Fit& fit) {
  const int c = fit.c;
  double *u = static_cast<double*>(fit.operand), *values = static_cast<double*>(fit.rows.values);
  for (int k = thread(); k < fit.rows.padded; k += kThreads) u[k] = load_fresh(fit.mean + k) / fit.mu;
  each_tile(fit.rows, [&](const float* tile, int start, int count) {
    double* along = values + c * fit.rows.tile_rows;
    dots(fit.rows, tile, count, u, 1, along);
    for (int e = thread(); e < count * c; e += kThreads)
      values[e % c * fit.rows.tile_rows + e / c] = fit.P[static_cast<long long>(start) * c + e];
    __syncthreads();
    for (int i = thread(); i < count; i += kThreads) fit.along[start + i] = along[i];
    accumulate(fit.rows, tile, count, values, c, own_partial<double>(fit), start > 0);
  });
  meet(fit.team);
  const int padded = fit.rows.padded;
  each_sum<double>(fit, c, [&](int j, int k, double sum) { fit.XtP[j * padded + k] = sum; });
  __syncthreads();
}

}  // namespace kpl::conjugate
