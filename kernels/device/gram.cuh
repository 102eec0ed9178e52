// K = X Xᵀ: how it is made, and how a team multiplies with its rows.
//
//   H_ij = Σ_l K_il R_lj  for the rows i of one block and the first columns j
//
// K (n, n) float64, row stride n. Where K lies decides the speed: in registers a step reads R alone; in shared memory
// 8 bytes a multiply-add at 128 bytes a clock; else the L2 cache.
#pragma once

#include "device/dual_task.cuh"
#include "device/team.cuh"

namespace kpl {

constexpr int kTile = 32;   // a block of 64 threads makes kTile x kTile entries of K, 4 x 4 a thread
constexpr int kDepth = 16;  // features at a time: 2 * 16 * 36 * 8 bytes = 9 KB of shared memory
constexpr int kTileStride = kTile + 4;  // apart: rows start in other banks and stay aligned to 16 bytes

/// kDepth features of kTile rows, as float64, transposed; zeros beyond the last row or feature.
static __device__ __forceinline__ void load_tile(const float* X, int n, int d, int first, int depth, double* tile) {
  for (int at = static_cast<int>(threadIdx.x); at < kTile * kDepth; at += static_cast<int>(blockDim.x)) {
    const int k = at % kDepth, row = at / kDepth, i = first + row, feature = depth + k;
    const bool inside = i < n && feature < d;
    tile[k * kTileStride + row] = inside ? static_cast<double>(X[static_cast<long long>(i) * d + feature]) : 0.0;
  }
}

/// Entries (first_row.., first_column..) of K and their mirror images, by one block of 64 threads.
static __device__ __forceinline__ void gram_tile(const float* X, int n, int d, int first_row, int first_column,
                                                 double* K) {
  double* rows = reinterpret_cast<double*>(dynamic_shared());
  double* columns = rows + kDepth * kTileStride;
  const int y = static_cast<int>(threadIdx.x) / 8 * 4, x = static_cast<int>(threadIdx.x) % 8 * 4;
  double total[4][4] = {};
  for (int depth = 0; depth < d; depth += kDepth) {
    __syncthreads();
    load_tile(X, n, d, first_row, depth, rows);
    load_tile(X, n, d, first_column, depth, columns);
    __syncthreads();
#pragma unroll 4
    for (int k = 0; k < kDepth; ++k) {
      double a[4], b[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        a[i] = rows[k * kTileStride + y + i];
        b[i] = columns[k * kTileStride + x + i];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) total[i][j] = fma(a[i], b[j], total[i][j]);
    }
  }
  // On the diagonal the two halves are sums in the same order, equal to the bit: only one writes.
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) {
      const long long row = first_row + y + i, column = first_column + x + j;
      if (row >= n || column >= n || row < column) continue;
      K[row * n + column] = total[i][j];
      K[column * n + row] = total[i][j];
    }
}

/// K in registers: lane l of a group of L lanes holds K[row, l + L q] for ROWS rows of its group. One block has all of K.
template <int ROWS, int COLUMNS, int L>
struct RegisterGram {
  static constexpr int kGroups = KPL_WARP / L;
  static constexpr int kCapacity = COLUMNS * L;
  static constexpr bool kOneRow = kGroups * ROWS <= KPL_WARP;  // of a lane, in what is done row by row
  double k[ROWS][COLUMNS];

  static __device__ __forceinline__ int first_row(int warp) { return warp * kGroups * ROWS; }

  __device__ __forceinline__ void begin(DualTask& task) {
    const int warp = warp_index(), most = task.n;
    task.begin = first_row(warp) < most ? first_row(warp) : most;
    task.end = first_row(warp + 1) < most ? first_row(warp + 1) : most;
  }

  /// At first, and again after rare work that needed the registers.
  __device__ __forceinline__ void reload(const DualTask& task) {
    const double* K = task.K();
    // Not task.n: the compiler would keep what follows from it, 81 comparisons, in registers through all steps.
    const int n = static_cast<int>(task.problem->n);
    const int lane = lane_index(), row = first_row(warp_index()) + lane / L * ROWS;
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
      for (int q = 0; q < COLUMNS; ++q) {
        const int l = lane % L + L * q;
        k[r][q] = row + r < n && l < n ? K[(row + r) * n + l] : 0.0;
      }
  }

  __device__ __forceinline__ void multiply(const DualTask& task, int columns) const {
    const int lane = lane_index(), position = sum_position<ROWS, L>(lane);
    const int row = first_row(warp_index()) + lane / L * ROWS + position;
    const bool owns = position >= 0 && row < task.n;
    for (int j = 0; j < columns; ++j) {
      const double* R = task.R.at + j * task.R.ldr + lane % L;
      double total[ROWS];
#pragma unroll
      for (int r = 0; r < ROWS; ++r) total[r] = 0.0;
#pragma unroll
      for (int q = 0; q < COLUMNS; ++q) {
        const double value = R[L * q];  // zero beyond the last row
#pragma unroll
        for (int r = 0; r < ROWS; ++r) total[r] = fma(k[r][q], value, total[r]);
      }
      transposed_sums<ROWS, L>(total, lane);
      if (owns) task.H[j * task.ld + row] = total[0];
    }
    __syncwarp();
  }
};

/// Products of ROWS rows of `length` numbers with COLUMNS columns that are `stride` apart, one warp; `take(row, column,
/// value)` is called once for each, by one lane.
template <int ROWS, int COLUMNS, typename Number, typename Take>
static __device__ __forceinline__ void warp_products(const Number* const (&rows)[ROWS], const double* columns,
                                                     int stride, int length, bool fresh, Take take) {
  const int lane = lane_index();
  double total[ROWS * COLUMNS] = {};
  for (int l = lane; l < length; l += KPL_WARP) {
    double value[COLUMNS];
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) value[j] = read(columns + static_cast<long long>(j) * stride + l, fresh);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const double x = static_cast<double>(rows[r][l]);
#pragma unroll
      for (int j = 0; j < COLUMNS; ++j) total[r * COLUMNS + j] = fma(x, value[j], total[r * COLUMNS + j]);
    }
  }
  transposed_sums<ROWS * COLUMNS, KPL_WARP>(total, lane);
  const int position = sum_position<ROWS * COLUMNS, KPL_WARP>(lane);
  if (position >= 0) take(position / COLUMNS, position % COLUMNS, total[0]);
}

/// The products of rows [begin, end) with `count` columns: 4 columns at a time so that a row is read once for them.
template <int ROWS, typename Rows, typename Take>
static __device__ __forceinline__ void multiply_some(int i, Rows rows, const double* columns, int stride, int length,
                                                     int count, bool fresh, Take take) {
  decltype(rows(0)) at[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; ++r) at[r] = rows(i + r);
  int j = 0;
  if constexpr (ROWS <= 4)
    for (; j + 4 <= count; j += 4)
      warp_products<ROWS, 4>(at, columns + static_cast<long long>(j) * stride, stride, length, fresh,
                             [&](int r, int q, double value) { take(i + r, j + q, value); });
  for (; j < count; ++j)
    warp_products<ROWS, 1>(at, columns + static_cast<long long>(j) * stride, stride, length, fresh,
                           [&](int r, int, double value) { take(i + r, j, value); });
}

/// `rows(i)` points to row i; as many rows at a time as there are, so that none is multiplied for nothing.
template <typename Rows, typename Take>
static __device__ __forceinline__ void multiply_rows(int begin, int end, Rows rows, const double* columns, int stride,
                                                     int length, int count, bool fresh, Take take) {
  int i = begin;
  if (count < 4)
    for (; i + 8 <= end; i += 8) multiply_some<8>(i, rows, columns, stride, length, count, fresh, take);
  for (; i + 4 <= end; i += 4) multiply_some<4>(i, rows, columns, stride, length, count, fresh, take);
  for (; i + 2 <= end; i += 2) multiply_some<2>(i, rows, columns, stride, length, count, fresh, take);
  for (; i < end; ++i) multiply_some<1>(i, rows, columns, stride, length, count, fresh, take);
}

/// K in memory: the first `kept` rows of the block in its shared memory, the others wherever the caches have them.
struct MemoryGram {
  static constexpr bool kOneRow = false;
  double* rows;
  int kept;

  __device__ __forceinline__ void begin(DualTask& task) {
    const int warp = warp_index(), warps = num_warps();
    task.begin = task.rows * warp / warps;
    task.end = task.rows * (warp + 1) / warps;
    const double* K = task.K() + static_cast<long long>(task.first) * task.n;
    for (int at = static_cast<int>(threadIdx.x); at < kept * task.n; at += static_cast<int>(blockDim.x)) rows[at] = K[at];
  }
  __device__ __forceinline__ void reload(const DualTask&) const {}

  __device__ __forceinline__ void multiply(const DualTask& task, int columns) const {
    const double* K = task.K();
    const auto row = [&](int i) -> const double* {
      return i < kept ? rows + i * task.n : K + static_cast<long long>(task.first + i) * task.n;
    };
    multiply_rows(task.begin, task.end, row, task.R.at, task.R.ldr, task.n, columns, task.R.fresh,
                  [&](int i, int j, double value) { task.H[j * task.ld + i] = value; });
    __syncwarp();
  }
};

}  // namespace kpl
