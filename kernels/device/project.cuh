// Z = X V in float64: n rows of float32 against columns that are made on the way to shared memory.
//
// A tile is 32 rows against up to 8 columns. The columns lie in shared memory as float64, so that an entry of X is
// converted once a tile and one of V once a group of columns (Hopper converts 16 numbers a clock and multiprocessor,
// and multiplies 64). A warp has 4 rows; its lanes share the depth d and meet at the end, all sums in one exchange.
// Every entry is summed in the same order wherever its row and column stand.
#pragma once

#include "device/platform.cuh"
#include "device/block_team.cuh"

namespace kpl {
namespace tiles {

constexpr int kThreads = 256;  // of a block; with more, 32 sums a thread would not stay in registers
constexpr int kWarps = kThreads / KPL_WARP;
constexpr int kRows = 4;  // of a warp
constexpr int kTile = kWarps * kRows;
constexpr int kGroup = 8;      // most columns at once
constexpr int kStaged = 6144;  // doubles of shared memory for columns: 8 of depth 768

// Σ over kLanes lanes of kCount sums in each, kCount a power of two up to kLanes: lane l gets number
// l / (kLanes / kCount). Halves are exchanged, so the numbers a lane carries halve each time.
template <int kCount, int kLanes = KPL_WARP>
static __device__ __forceinline__ double scatter_sums(const double (&sums)[kCount]) {
    if constexpr (kLanes == 1) {
        return sums[0];
    } else if constexpr (kCount == 1) {
        const double both[1] = {sums[0] + __shfl_xor_sync(KPL_FULL_MASK, sums[0], kLanes / 2)};
        return scatter_sums<1, kLanes / 2>(both);
    } else {
        constexpr int kHalf = kCount / 2;
        const bool upper = int(threadIdx.x) & kLanes / 2;
        double halves[kHalf];
#pragma unroll
        for (int i = 0; i < kHalf; ++i) {
            const double sent = upper ? sums[i] : sums[i + kHalf], kept = upper ? sums[i + kHalf] : sums[i];
            halves[i] = kept + __shfl_xor_sync(KPL_FULL_MASK, sent, kLanes / 2);
        }
        return scatter_sums<kHalf, kLanes / 2>(halves);
    }
}

// sums += rows[..][k] · columns[..][k] for this lane's share of `depth`; squares += rows².
template <int kColumns>
static __device__ __forceinline__ void accumulate(const float* const (&rows)[kRows], const double* columns, int depth,
                                                  double (&sums)[kRows * kColumns], double (&squares)[kRows]) {
#pragma unroll 4
    for (int k = int(threadIdx.x) % KPL_WARP; k < depth; k += KPL_WARP) {
        double x[kRows];
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
            x[r] = double(rows[r][k]);
            squares[r] = fma(x[r], x[r], squares[r]);
        }
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
            const double v = columns[j * (kStaged / kColumns) + k];
#pragma unroll
            for (int r = 0; r < kRows; ++r) sums[r * kColumns + j] = fma(x[r], v, sums[r * kColumns + j]);
        }
    }
}

// Shape of X and where columns are staged: kStaged doubles of shared memory.
struct Product {
    const float* X;
    long long n;
    int d;
    double* staged;
};

// Rows [from, to) against the columns from `first` on, kColumns of them or what is left of `count`.
// source.load(k, first + j) is the column's entry; sink.entry(i, j, z), and sink.square(i, ‖x_i‖²) with the first.
template <int kColumns, typename Source, typename Sink>
static __device__ void project_rows(const Product& product, const Source& source, int first, int count,
                                    long long from, long long to, const Sink& sink) {
    const int lane = int(threadIdx.x) % KPL_WARP, warp = int(threadIdx.x) / KPL_WARP;
    constexpr int most = kStaged / kColumns;  // the depth that fits, and how far columns lie apart
    const int d = product.d;
    for (long long tile = from; tile < to; tile += kTile) {
        double sums[kRows * kColumns] = {}, squares[kRows] = {};
        for (int start = 0; start < d; start += most) {
            const int depth = d - start < most ? d - start : most;
            if (tile == from || d > most) {
                __syncthreads();
                for (int k = int(threadIdx.x); k < depth; k += kThreads)
                    for (int j = 0; j < kColumns; ++j)
                        product.staged[j * most + k] = first + j < count ? source.load(start + k, first + j) : 0.0;
                __syncthreads();
            }
            const float* rows[kRows];
            for (int r = 0; r < kRows; ++r) {
                const long long row = tile + warp * kRows + r;
                rows[r] = product.X + (row < to ? row : to - 1) * d + start;
            }
            accumulate<kColumns>(rows, product.staged, depth, sums, squares);
        }
        constexpr int kShare = KPL_WARP / (kRows * kColumns);  // lanes that hold the same sum
        const double z = scatter_sums(sums), square = scatter_sums(squares);
        const int index = lane / kShare, j = first + index % kColumns;
        const long long row = tile + warp * kRows + index / kColumns;
        if (lane % kShare == 0 && row < to && j < count) sink.entry(row, j, z);
        const long long own = tile + warp * kRows + lane / (KPL_WARP / kRows);
        if (first == 0 && lane % (KPL_WARP / kRows) == 0 && own < to) sink.square(own, square);
    }
}

// All rows against all `count` columns, tiles shared by the team, rows fastest: a block keeps its columns staged, and
// blocks that work on different columns read the same rows at about the same time, from the L2 cache.
template <typename Source, typename Sink>
static __device__ void project(const Product& product, const Source& source, int count, const BlockTeam& team,
                               const Sink& sink) {
    const long long tiles = (product.n + kTile - 1) / kTile, items = tiles * ((count + kGroup - 1) / kGroup);
    for (long long item = team.start(items), last = team.end(items); item < last;) {
        const long long tile = item % tiles, stop = tile + (last - item) < tiles ? tile + (last - item) : tiles;
        const long long from = tile * kTile, to = stop * kTile < product.n ? stop * kTile : product.n;
        const int first = int(item / tiles) * kGroup, left = count - first;
        if (left > 4)
            project_rows<8>(product, source, first, count, from, to, sink);
        else if (left > 2)
            project_rows<4>(product, source, first, count, from, to, sink);
        else
            project_rows<2>(product, source, first, count, from, to, sink);
        item += stop - tile;
    }
}

}  // namespace tiles
}  // namespace kpl
