// One warp's work on source rows: from bytes to signed words of one channel, and the pass along a row.
//
// Rows come in pieces of `kPieceWords` words: copied 16 bytes a lane into the warp's own shared memory (cp.async, two
// pieces by turns), split by channel into words of four neighbours, then each lane takes the taps of one output column.
#pragma once

#include "device/resample.cuh"

namespace kpl::resample {

constexpr int kStrip = KPL_WARP;      // output columns of a block, one a lane
constexpr int kRows = 4;              // rows of a piece: their results make one word of the pass along columns
constexpr int kPieceWords = 48;       // words of one channel in a row of a piece
constexpr int kPieceBytes = 608;      // 144 * 4 + 15 before + the word after, in steps of 16
constexpr int kRawBytes = kRows * kPieceBytes;
constexpr int kStageBytes = 2 * kRawBytes + kRows * 3 * kPieceWords * 4;

/// Where a warp stages its rows.
struct Stage {
  unsigned char* raw;  // [2][kRows][kPieceBytes]
  uint4* words;        // [3][kPieceWords] of kRows rows each: one load brings the words of four rows
};

static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % KPL_WARP; }
static __device__ __forceinline__ int warp() { return static_cast<int>(threadIdx.x) / KPL_WARP; }
static __device__ __forceinline__ int num_warps() { return static_cast<int>(blockDim.x) / KPL_WARP; }

static __device__ __forceinline__ Stage stage_at(unsigned char* memory) {
  unsigned char* own = memory + warp() * kStageBytes;
  return {own, reinterpret_cast<uint4*>(own + 2 * kRawBytes)};
}

/// Words of a channel that fit a piece of a row.
static __device__ __forceinline__ int words_of_piece(const Picture& picture) {
  return picture.channels == 4 ? kPieceWords * 3 / 4 : kPieceWords;
}

static __device__ __forceinline__ const unsigned char* pixel_at(const Picture& picture, long long row, int word) {
  return picture.pixels + row * picture.row_stride + 4ll * word * picture.channels;
}

static __device__ __forceinline__ int offset_in_16(const void* address) {
  return static_cast<int>(reinterpret_cast<unsigned long long>(address) % 16);
}

/// Starts the copy of words first .. last - 1 of kRows rows, as one group; rows past the picture are left out.
static __device__ __forceinline__ void fetch(const Picture& picture, long long row, int first, int last,
                                             unsigned char* raw) {
  const long long bytes = min(4ll * last, picture.width) * picture.channels - 4ll * first * picture.channels;
  for (int r = 0; r < kRows && row + r < picture.height; ++r) {
    const unsigned char* from = pixel_at(picture, row + r, first);
    const int before = offset_in_16(from);
    for (int at = 16 * lane(); at < before + bytes; at += 16 * KPL_WARP)
      copy_async_16(raw + r * kPieceBytes + at, from - before + at);
  }
  copy_async_commit();
}

/// Splits what `fetch` brought into words of a channel; those of rows past the picture mean nothing.
static __device__ __forceinline__ void split(const Picture& picture, long long row, int first, int last,
                                             const unsigned char* raw, uint4* words) {
  const int count = last - first, channels = static_cast<int>(picture.channels);
  int before[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r)
    before[r] = offset_in_16(pixel_at(picture, row + r, first)) + r * kPieceBytes;
  for (int word = lane(); word < count; word += KPL_WARP) {
    unsigned rgb[kRows][3];
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      split_pixels(reinterpret_cast<const unsigned*>(raw), before[r] + 4 * word * channels, channels, rgb[r]);
#pragma unroll
    for (int channel = 0; channel < 3; ++channel)
      words[channel * kPieceWords + word] =
          make_uint4(rgb[0][channel], rgb[1][channel], rgb[2][channel], rgb[3][channel]);
  }
}

/// Sums of four rows and three channels.
struct Sums {
  Level levels[3][kRows];

  __device__ __forceinline__ void add(const uint4* words, int digit0, int digit1, int digit2) {
#pragma unroll
    for (int channel = 0; channel < 3; ++channel) {
      const uint4 four = words[channel * kPieceWords];
      levels[channel][0].add(static_cast<int>(four.x), digit0, digit1, digit2);
      levels[channel][1].add(static_cast<int>(four.y), digit0, digit1, digit2);
      levels[channel][2].add(static_cast<int>(four.z), digit0, digit1, digit2);
      levels[channel][3].add(static_cast<int>(four.w), digit0, digit1, digit2);
    }
  }
  /// The levels of one channel in four rows, signed.
  __device__ __forceinline__ unsigned word(int channel, int bias) const {
    unsigned four = 0;
#pragma unroll
    for (int r = 0; r < kRows; ++r) four |= level_of(levels[channel][r].joined(), bias) << (8 * r);
    return four ^ 0x80808080u;
  }
};

/// sums += the taps of an output column in words first .. last - 1 of rows. Digits come through L1, 3 for 12 words.
static __device__ __forceinline__ void add_rows(const Table& table, int output, const uint4* words, int first, int last,
                                                Sums& sums) {
  const int start = table.first[output];
  for (int at = max(start, first); at < min(start + table.words, last); ++at)
    sums.add(words + at - first, table.digit(0, at - start, output), table.digit(1, at - start, output),
             table.digit(2, at - start, output));
}

}  // namespace kpl::resample
