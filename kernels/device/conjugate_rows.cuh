// Passes over the rows of X that one block has: products of rows with a few vectors, and weighted sums of rows.
//
//   dots:        values_ji = x_i · v_j                accumulate:  to_j = Σ_i values_ji x_i
//
// Rows lie in shared memory, padded with zeros to a multiple of four columns: all of them for the whole run where they
// fit, else two tiles by turns, the next on its way (cp.async) while one is worked on. Both products read a row once
// for up to `kWide` vectors, 16 bytes a thread: 8 rows of 768 columns and one vector are about 400 clocks each.
#pragma once

#include "device/conjugate_team.cuh"

namespace kpl::conjugate {

struct Rows {
  const float* X;        // the block's first row, rows d apart
  int count, d, padded;
  float* tiles[2];       // shared; the second is unused where the first holds all rows
  int tile_rows;
  bool resident;
  void* values;          // shared, [columns][tile_rows] of float or double
};

template <typename T>
struct Four {
  T at[4];
};

static __device__ __forceinline__ Four<float> four_at(const float* from) {
  const float4 v = *reinterpret_cast<const float4*>(from);
  return {{v.x, v.y, v.z, v.w}};
}
static __device__ __forceinline__ Four<double> four_at(const double* from) {
  const double2 low = reinterpret_cast<const double2*>(from)[0], high = reinterpret_cast<const double2*>(from)[1];
  return {{low.x, low.y, high.x, high.y}};
}
static __device__ __forceinline__ void put_four(float* to, const Four<float>& v) {
  *reinterpret_cast<float4*>(to) = make_float4(v.at[0], v.at[1], v.at[2], v.at[3]);
}
static __device__ __forceinline__ void put_four(double* to, const Four<double>& v) {
  reinterpret_cast<double2*>(to)[0] = make_double2(v.at[0], v.at[1]);
  reinterpret_cast<double2*>(to)[1] = make_double2(v.at[2], v.at[3]);
}

static __device__ __forceinline__ bool is_aligned(const void* address) {
  return reinterpret_cast<unsigned long long>(address) % 16 == 0;
}

/// Starts the copy of rows start .. start + count - 1 into a tile, as one group.
static __device__ __noinline__ void load_tile(const Rows& rows, float* tile, int start, int count) {
  const float* from = rows.X + static_cast<long long>(start) * rows.d;
  if (rows.padded == rows.d && is_aligned(from)) {
    for (int q = thread(); q < count * (rows.d / 4); q += kThreads) copy_async_16(tile + 4 * q, from + 4 * q);
  } else {
    for (int i = warp(); i < count; i += kWarps)
      for (int k = lane(); k < rows.padded; k += KPL_WARP)
        tile[i * rows.padded + k] = k < rows.d ? from[static_cast<long long>(i) * rows.d + k] : 0.0f;
  }
  copy_async_commit();
}

/// The rows that stay, before the first pass.
static __device__ __forceinline__ void load_resident(const Rows& rows) {
  if (!rows.resident) return;
  load_tile(rows, rows.tiles[0], 0, rows.count);
  copy_async_wait<0>();
  __syncthreads();
}

/// body(tile, first row, number of rows) for all rows, at least once. The block is in step at its beginning and end.
template <typename Body>
static __device__ __forceinline__ void each_tile(const Rows& rows, Body body) {
  const int step = rows.resident ? max(rows.count, 1) : rows.tile_rows;
  __syncthreads();
  if (!rows.resident) load_tile(rows, rows.tiles[0], 0, min(step, rows.count));
  for (int start = 0, turn = 0; start == 0 || start < rows.count; start += step, turn ^= 1) {
    if (!rows.resident) {
      // Rows past the end are an empty group, so that one group is always newer than the tile waited for.
      load_tile(rows, rows.tiles[turn ^ 1], start + step, max(min(step, rows.count - start - step), 0));
      copy_async_wait<1>();
      __syncthreads();
    }
    body(rows.tiles[turn], start, min(step, rows.count - start));
    __syncthreads();
  }
}

/// values[j][i] <- x_i · vectors[j] for j < num_vectors, one warp four rows and kWide vectors.
template <int kWide, typename T>
static __device__ __forceinline__ void dots_wide(const Rows& rows, const float* tile, int count, const T* vectors,
                                                 int num_vectors, T* values) {
  constexpr int kRows = 4;
  for (int first = warp() * kRows; first < count; first += kWarps * kRows) {
    for (int j = 0; j < num_vectors; j += kWide) {
      T sums[kRows][kWide] = {};
      for (int k = 4 * lane(); k < rows.padded; k += 4 * KPL_WARP) {
        Four<float> x[kRows];
#pragma unroll
        for (int r = 0; r < kRows; ++r) x[r] = four_at(tile + min(first + r, count - 1) * rows.padded + k);
#pragma unroll
        for (int w = 0; w < kWide; ++w) {
          const Four<T> v = four_at(vectors + static_cast<long long>(min(j + w, num_vectors - 1)) * rows.padded + k);
#pragma unroll
          for (int r = 0; r < kRows; ++r)
#pragma unroll
            for (int e = 0; e < 4; ++e) sums[r][w] += static_cast<T>(x[r].at[e]) * v.at[e];
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int w = 0; w < kWide; ++w) {
          const T sum = warp_sum(sums[r][w]);
          if (lane() == 0 && first + r < count && j + w < num_vectors)
            values[(j + w) * rows.tile_rows + first + r] = sum;
        }
    }
  }
}

/// to[j] <- or += Σ_i values[j][i] x_i for j < num_vectors; a thread has four columns of kWide vectors.
template <int kWide, typename T>
static __device__ __forceinline__ void accumulate_wide(const Rows& rows, const float* tile, int count, const T* values,
                                                       int num_vectors, T* to, bool add) {
  for (int k = 4 * thread(); k < rows.padded; k += 4 * kThreads) {
    for (int j = 0; j < num_vectors; j += kWide) {
      Four<T> sums[kWide] = {};
#pragma unroll 4
      for (int i = 0; i < count; ++i) {
        const Four<float> x = four_at(tile + i * rows.padded + k);
#pragma unroll
        for (int w = 0; w < kWide; ++w) {
          const T value = values[min(j + w, num_vectors - 1) * rows.tile_rows + i];
#pragma unroll
          for (int e = 0; e < 4; ++e) sums[w].at[e] += value * static_cast<T>(x.at[e]);
        }
      }
#pragma unroll
      for (int w = 0; w < kWide; ++w) {
        if (j + w >= num_vectors) continue;
        T* target = to + static_cast<long long>(j + w) * rows.padded + k;
        if (add) {
          const Four<T> before = four_at(target);
#pragma unroll
          for (int e = 0; e < 4; ++e) sums[w].at[e] += before.at[e];
        }
        put_four(target, sums[w]);
      }
    }
  }
}

template <typename T>
static __device__ __noinline__ void dots(const Rows& rows, const float* tile, int count, const T* vectors,
                                            int num_vectors, T* values) {
  if (num_vectors == 1)
    dots_wide<1>(rows, tile, count, vectors, num_vectors, values);
  else
    dots_wide<16 / sizeof(T)>(rows, tile, count, vectors, num_vectors, values);
}

template <typename T>
static __device__ __noinline__ void accumulate(const Rows& rows, const float* tile, int count, const T* values,
                                                  int num_vectors, T* to, bool add) {
  if (num_vectors == 1)
    accumulate_wide<1>(rows, tile, count, values, num_vectors, to, add);
  else
    accumulate_wide<16 / sizeof(T)>(rows, tile, count, values, num_vectors, to, add);
}

}  // namespace kpl::conjugate
