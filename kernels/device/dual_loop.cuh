// The loop of the dual form and its end: every thread of a team takes the same decisions from the same bits.
//
// A step: H = K R, the sums of the team (one barrier), the lengths of the columns, the move and its R (one barrier).
// Whether a step changed a bit is summed with the next step's sums, so the exact early exit and a fresh start cost no
// barrier of their own: they are found one product late, before anything has been changed.
#pragma once

#include "device/dual_start.cuh"

namespace kpl {

enum class Verdict { kMove, kSettled, kFrozen, kDrifted };

/// Sums of the step, and from them the columns' lengths. Nothing is changed unless the verdict is to move.
template <typename Team, typename Gram>
static __device__ __forceinline__ Verdict plan_step(const DualTask& task, const Team& team, Gram& gram,
                                                    const DualOptions& options, long long done, bool& changed) {
  StepSize step = *task.step;
  ClassSums<Team::kFreshSlots> sums(task, team.gather(task.part, task.slot));
  double square = sums.total(task);
  const Pair last = sums.last(task);
  // The first step may yet bring ‖w_j‖² to 1.
  const bool has_changed = last.y > 0.0 || done < 2;
  if (!has_changed && options.early_exit) return Verdict::kSettled;
  const double most = options.max_drift;
  if (has_changed && any_class(task, [most](const Column& column) { return column.drift > most; }))
    return Verdict::kDrifted;
  if (square < kFewDigits * last.x) {
    sums = ClassSums<Team::kFreshSlots>(task, squared_gradients(task, team));
    square = sums.total(task);
    gram.reload(task);
  }
  const double eta = next_eta(step, square);
  if (lane_index() == 0) *task.step = step;
  if (is_frozen(step, done, options.iters - done)) return Verdict::kFrozen;
  bool moved = false;
  sums.for_classes(task, [&](Column& column, const Pair& pair) {
    column.before = has_changed ? column.drift : column.before;  // nothing was rounded in a step that changed nothing
    const ColumnStep next = step_column(eta, pair.x, pair.y, column.before, column.squared);
    const double t = column.t * next.inverse;
    moved |= t != column.t;
    column.t = t;
    column.eta = next.eta;
    column.inverse = next.inverse;
    column.drift = next.drift;
  });
  changed = moved;
  return Verdict::kMove;
}

/// Classes with the same start and the same labels have the same proxies; rounding may have parted them.
template <typename Team>
static __device__ __forceinline__ void join_equal_classes(const DualTask& task, const Team& team) {
  const int warp = team.rank * num_warps() + warp_index(), lane = lane_index(), d = task.d();
  const float* starts = task.problem->T;
  const double* labels = task.problem->P;
  double* W = task.problem->W;
  for (int j = 1 + warp; j < task.c; j += team.count * num_warps()) {
    const float* T = starts + static_cast<long long>(j) * d;
    for (int first = 0, found = -1; first < j && found < 0; first += KPL_WARP) {
      const int candidate = first + lane;
      const bool may_be = candidate < j && starts[static_cast<long long>(candidate) * d] == T[0];
      unsigned alike = __ballot_sync(KPL_FULL_MASK, may_be && labels[candidate] == labels[j]);
      for (; alike != 0 && found < 0; alike &= alike - 1) {
        const int i = first + __ffs(static_cast<int>(alike)) - 1;
        bool same = true;
        for (int k = lane; k < d; k += KPL_WARP) same &= starts[static_cast<long long>(i) * d + k] == T[k];
        for (long long row = lane; row < task.n; row += KPL_WARP)
          same &= labels[row * task.c + i] == labels[row * task.c + j];
        if (!__all_sync(KPL_FULL_MASK, same)) continue;
        found = i;
        for (int k = lane; k < d; k += KPL_WARP)
          W[static_cast<long long>(j) * d + k] = read(W + static_cast<long long>(i) * d + k, Team::kManyBlocks);
      }
    }
  }
}

static __device__ __forceinline__ void write_record(Record& record, const StepSize& step, long long done,
                                                    Verdict end) {
  record.iterations = done;
  record.halvings = step.halvings;
  record.converged = end == Verdict::kSettled || is_flat(step);
  record.frozen = end == Verdict::kFrozen;
  record.form = kDualForm;
  record.gradient_norm = sqrt(step.square);  // `residual` stays: the figure of what the closed form refused
  record.lr = step.lr;
}

/// One problem from X, K, T and P to W and its record.
template <typename Team, typename Gram>
static __device__ __forceinline__ void run_dual(DualTask& task, const Team& team, Gram& gram,
                                                const DualOptions& options, Record* record) {
  // Columns beyond the last row meet zeros of K, and so must not hold NaN.
  for (int at = static_cast<int>(threadIdx.x); at < task.c * task.R.ldr; at += static_cast<int>(blockDim.x))
    if (!task.R.fresh) task.R.at[at] = 0.0;
  gram.begin(task);
  team.barrier();
  const double mass = load_problem(task, team, options);
  if (team.rank == 0 && threadIdx.x == 0) record->mass = mass;
  gram.reload(task);
  prepare_rest(task, team, gram);
  begin_at_w(task, team);
  gram.reload(task);
  long long done = 0;
  Verdict verdict = Verdict::kMove;
  bool changed = true;
  while (done < options.iters) {
    gram.multiply(task, task.c - 1);
    sum_rows<Gram::kOneRow>(task, changed);
    verdict = plan_step(task, team, gram, options, done, changed);
    if (verdict == Verdict::kDrifted) {
      start_afresh(task, team);
      gram.reload(task);
      changed = true;
      continue;
    }
    if (verdict != Verdict::kMove) break;
    changed |= move_rows<Gram::kOneRow>(task);
    __syncwarp();
    team.push_rows(task.R, task.c, task.first + task.begin, task.end - task.begin);
    team.share(task.R, task.n, task.c);
    ++done;
  }
  combine(task, team);
  join_equal_classes(task, team);
  if (team.rank == 0 && threadIdx.x == 0) write_record(*record, *task.step, done, verdict);
}

}  // namespace kpl
