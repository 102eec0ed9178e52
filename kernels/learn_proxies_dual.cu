// The published schedule in the span of the images (docs/method.md 3a): all steps of many problems in one launch, after
// one launch that makes K. No thread waits for the host.
//
//   K = X Xᵀ;  each step:  H = K R,  eta = lr / (n tau_i),  s_j² = ‖w_j‖² - 2 eta Σ_i Z_ij R_ij + eta² Σ_i R_ij H_ij,
//   Z <- (Z - eta H) / s,  A <- (A - eta R) / s,  t <- t / s,  R = softmax(Z / tau_i) - P;  W = T diag(t) + Xᵀ A
//
// Twins: kpl_engine/solver/schedule.py: run_dual; kernels/cpu/dual.h.
//
// In: X (n, d) float32, T (c, d) float32, P (n, c) float64, hardened. Out: W (c, d) float64, the record but for
// num_hardened, fault and fits. Workspace: K (n, n) float64 and what dual_task.cuh: Workspace says. State is float64.
//
// Flops: gram n² d (half of it, mirrored); a step 2 n² (c - 1) and n c exponentials (one a row for two classes). Bytes:
// gram 8 n² written; a step reads K, 8 n², from where it lies, and nothing else outside the multiprocessor but what the
// blocks of a team exchange: R, 8 n c, and 8 (2 c + 2) of sums a block.
//
//   dual_32 .. dual_144   a block a problem, K in registers, n up to the number and up to 15 classes
//   dual_block            a block a problem, K in shared memory as far as it fits, else in the L2 cache; any n
//   dual_cluster          2 to 16 blocks a problem share the rows of K (sm_90+), R through distributed shared memory
//   dual_grid             blocks of a cooperative launch share them, R through global memory
//
// What bounds it on an H200 (132 multiprocessors, 64 float64 multiply-adds and 128 bytes of shared memory a clock and
// multiprocessor, 1.8 GHz). All times are predictions from counted operations; nothing here has been timed on a GPU.
//   (138, 768, 2), dual_144: 324 clocks of multiply-adds (81 a thread), then a chain of operations that wait for each
//   other: 4 exchanges of the product, 5 of the sums, a barrier, 3 of the warps' sums, a reciprocal root, an
//   exponential, a reciprocal, a barrier; about 25 clocks each shared load or shuffle with its sum, 40 a barrier, 80 to
//   150 a function: 1300 to 1600 clocks a step, 1.5 to 1.8 ms for 2000.
//   (64, 768, 4), dual_64: 200 clocks of multiply-adds, about 1500 a step, 1.7 ms; 2 blocks a multiprocessor, so 264
//   problems in the time of one.
//   (662, 768, 2), dual_cluster of 16: 42 rows of K a block, 222 KB, 1740 clocks of shared memory, two cluster barriers
//   of 200 to 300 clocks, about 900 of the chain: 3200 clocks, 3.6 ms for 2000.
//   (2000, 768, 2), dual_grid: 16 rows a block, 2000 clocks of shared memory, two barriers of about 1.2 us: 4.5 us a
//   step, 9 ms for 2000. K from the L2 cache (n up to about 2400 beyond shared memory) or from memory adds 8 n² bytes
//   at 5.5 or 4.8 TB/s: (4000, 768, 2) 27 us a step.
//   gram: (138, 768) 15 tiles of 12,300 clocks at least, 10 us; (4000, 768) 0.4 ms.
#include "device/dual_loop.cuh"

namespace kpl {
namespace {

/// Problems that the closed form has solved, where only the others are asked for.
__device__ __forceinline__ bool is_solved(const Problem& problem, int only_if_fault) {
  return only_if_fault != 0 && problem.record->fault == 0 && problem.record->form == kClosedForm;
}

/// Whether this block, one a problem, has anything to do.
__device__ __forceinline__ bool has_work(const Problem* problems, int num_problems, int only_if_fault) {
  return static_cast<int>(blockIdx.x) < num_problems && !is_solved(problems[blockIdx.x], only_if_fault);
}

/// Sizes and arrays of one problem for block `rank` of `count`; `capacity` entries at least in a row of R.
template <bool kSpills>
__device__ __forceinline__ DualTask make_task(const Problem& problem, int rank, int count, int capacity, double tau_i,
                                              SharedMemory& shared) {
  DualTask task = {};
  task.problem = &problem;
  task.n = static_cast<int>(problem.n);
  task.c = static_cast<int>(problem.c);
  task.scale = 1.0 / tau_i;
  task.first = static_cast<int>(problem.n * rank / count);
  task.rows = static_cast<int>(problem.n * (rank + 1) / count) - task.first;
  task.slot = slot_size(task.c);
  const int most = (task.n + count - 1) / count;  // rows of any block: all blocks lay their memory out alike
  task.R.ldr = capacity > task.n ? capacity : task.n;
  task.part = shared.take(num_warps() * task.slot);
  double* columns = shared.take((task.few() ? num_warps() : 1) * task.c * (sizeof(Column) / 8));
  task.columns = reinterpret_cast<Column*>(columns) + (task.few() ? warp_index() * task.c : 0);
  task.step = reinterpret_cast<StepSize*>(shared.take(num_warps() * kStepDoubles)) + warp_index();
  task.ld = most;
  const long long size = static_cast<long long>(task.c) * most;
  if (!kSpills) {
    task.R.at = shared.take(static_cast<long long>(task.c) * task.R.ldr);
    task.Z = shared.take(size);
    task.A = shared.take(size);
    task.P = shared.take(size);
    task.H = shared.take(size);
    task.rest = shared.take(most);
    return task;
  }
  const Workspace place = {problem.workspace, task.n, task.c, most, count};
  task.R.at = shared.take_or(static_cast<long long>(task.c) * task.R.ldr, place.rows());
  task.rest = shared.take_or(most, place.rest(rank));
  task.Z = shared.take_or(size, place.state(0, rank));
  task.H = shared.take_or(size, place.state(1, rank));
  task.P = shared.take_or(size, place.state(2, rank));
  task.A = shared.take_or(size, place.state(3, rank));
  return task;
}

/// K in registers: everything else is in shared memory, one block a problem.
template <typename Gram>
__device__ __forceinline__ void solve_in_registers(const Problem& problem, const DualOptions& options, double tau_i) {
  SharedMemory shared = SharedMemory::whole(0);
  DualTask task = make_task<false>(problem, 0, 1, Gram::kCapacity, tau_i, shared);
  if (!task.few()) return;  // the launcher sees to it: less code, and K needs the registers
  Gram gram;
  run_dual(task, BlockTeam(), gram, options, problem.record);
}

/// What is left of the shared memory holds rows of K.
template <typename Team>
__device__ __forceinline__ void solve_in_memory(const Problem& problem, DualTask& task, const Team& team,
                                                const DualOptions& options, const SharedMemory& shared) {
  const long long fit = shared.left / task.n;
  MemoryGram gram = {shared.next, static_cast<int>(fit < task.rows ? fit : task.rows)};
  run_dual(task, team, gram, options, problem.record);
}

}  // namespace
}  // namespace kpl

#define KPL_DUAL_PARAMETERS                                                                                        \
  const kpl::Problem *problems, int num_problems, double lr, long long iters, double tau_i, double movement,       \
      double max_drift, int early_exit, int only_if_fault
#define KPL_DUAL_OPTIONS \
  { lr, tau_i, movement, max_drift, iters, early_exit != 0 }

/// K of every problem into its workspace: `tiles` blocks of 64 threads a problem, one for each tile of the lower half.
extern "C" __global__ void __launch_bounds__(64)
    gram(const kpl::Problem* problems, int num_problems, int tiles, int only_if_fault) {
  const int index = static_cast<int>(blockIdx.x) / tiles, tile = static_cast<int>(blockIdx.x) % tiles;
  if (index >= num_problems) return;
  const kpl::Problem& problem = problems[index];
  if (kpl::is_solved(problem, only_if_fault)) return;
  int row = static_cast<int>((sqrt(8.0 * tile + 1.0) - 1.0) * 0.5);  // the row whose tiles start at row (row + 1) / 2
  while (row * (row + 1) / 2 > tile) --row;
  while ((row + 1) * (row + 2) / 2 <= tile) ++row;
  const int column = tile - row * (row + 1) / 2, n = static_cast<int>(problem.n);
  if (row * kpl::kTile >= n) return;
  kpl::gram_tile(problem.X, n, static_cast<int>(problem.d), row * kpl::kTile, column * kpl::kTile, problem.workspace);
}
KPL_EXPORT_KERNEL(gram);

// threads / lanes groups of as many rows each, and as many entries of each row a lane: 128 to 324 bytes of K a thread.

extern "C" __global__ void __launch_bounds__(32, 8) dual_32(KPL_DUAL_PARAMETERS) {
  if (kpl::has_work(problems, num_problems, only_if_fault))
    kpl::solve_in_registers<kpl::RegisterGram<8, 4, 8>>(problems[blockIdx.x], KPL_DUAL_OPTIONS, tau_i);
}
KPL_EXPORT_KERNEL(dual_32);

extern "C" __global__ void __launch_bounds__(128, 2) dual_64(KPL_DUAL_PARAMETERS) {
  if (kpl::has_work(problems, num_problems, only_if_fault))
    kpl::solve_in_registers<kpl::RegisterGram<8, 4, 16>>(problems[blockIdx.x], KPL_DUAL_OPTIONS, tau_i);
}
KPL_EXPORT_KERNEL(dual_64);

extern "C" __global__ void __launch_bounds__(256, 1) dual_96(KPL_DUAL_PARAMETERS) {
  if (kpl::has_work(problems, num_problems, only_if_fault))
    kpl::solve_in_registers<kpl::RegisterGram<6, 6, 16>>(problems[blockIdx.x], KPL_DUAL_OPTIONS, tau_i);
}
KPL_EXPORT_KERNEL(dual_96);

extern "C" __global__ void __launch_bounds__(256, 1) dual_144(KPL_DUAL_PARAMETERS) {
  if (kpl::has_work(problems, num_problems, only_if_fault))
    kpl::solve_in_registers<kpl::RegisterGram<9, 9, 16>>(problems[blockIdx.x], KPL_DUAL_OPTIONS, tau_i);
}
KPL_EXPORT_KERNEL(dual_144);

extern "C" __global__ void __launch_bounds__(256, 1) dual_block(KPL_DUAL_PARAMETERS, int shared_bytes) {
  if (!kpl::has_work(problems, num_problems, only_if_fault)) return;
  const kpl::Problem& problem = problems[blockIdx.x];
  kpl::SharedMemory shared = kpl::SharedMemory::whole(shared_bytes);
  kpl::DualTask task = kpl::make_task<true>(problem, 0, 1, 0, tau_i, shared);
  kpl::solve_in_memory(problem, task, kpl::BlockTeam(), KPL_DUAL_OPTIONS, shared);
}
KPL_EXPORT_KERNEL(dual_block);

extern "C" __global__ void __launch_bounds__(256, 1) dual_cluster(KPL_DUAL_PARAMETERS, int shared_bytes) {
#if KPL_HAS_CLUSTERS
  const int count = static_cast<int>(kpl::cluster_size()), rank = static_cast<int>(kpl::cluster_rank());
  const int index = static_cast<int>(blockIdx.x) / count;
  const kpl::Problem& problem = problems[index];
  if (index >= num_problems || kpl::is_solved(problem, only_if_fault)) return;
  kpl::SharedMemory shared = kpl::SharedMemory::whole(shared_bytes);
  double* slots = shared.take(count * kpl::slot_size(static_cast<int>(problem.c)));
  kpl::DualTask task = kpl::make_task<true>(problem, rank, count, 0, tau_i, shared);
  const kpl::ClusterTeam team = {rank, count, slots};
  kpl::solve_in_memory(problem, task, team, KPL_DUAL_OPTIONS, shared);
  team.barrier();  // no block may end while others still write into its shared memory
#else
  __trap();  // an image for older GPUs on one with clusters: without an answer nobody would know
#endif
}
KPL_EXPORT_KERNEL(dual_cluster);

/// A cooperative launch of teams of `team_blocks` blocks, which take the problems in turn; `counters` were zeroed.
extern "C" __global__ void __launch_bounds__(256, 1)
    dual_grid(KPL_DUAL_PARAMETERS, int shared_bytes, unsigned* counters, int team_blocks) {
  const int teams = static_cast<int>(gridDim.x) / team_blocks, rank = static_cast<int>(blockIdx.x) % team_blocks;
  for (int index = static_cast<int>(blockIdx.x) / team_blocks; index < num_problems; index += teams) {
    const kpl::Problem& problem = problems[index];
    if (kpl::is_solved(problem, only_if_fault)) continue;
    kpl::SharedMemory shared = kpl::SharedMemory::whole(shared_bytes);
    kpl::DualTask task = kpl::make_task<true>(problem, rank, team_blocks, 0, tau_i, shared);
    const kpl::Workspace place = {problem.workspace, task.n, task.c, task.ld, team_blocks};
    task.R.fresh = task.R.at == place.rows();
    const kpl::GridTeam team = {rank, team_blocks, counters + static_cast<long long>(index) * kpl::kCounters,
                                place.slots(), place.rows()};
    kpl::solve_in_memory(problem, task, team, KPL_DUAL_OPTIONS, shared);
    __syncthreads();  // shared memory is used again
  }
}
KPL_EXPORT_KERNEL(dual_grid);
