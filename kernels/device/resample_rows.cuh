// One warp's work on source rows: from bytes to signed words of one channel, and the pass along a row.
//
// Rows come in pieces of `kPieceWords` words: copied 16 bytes a lane into the warp's own shared memory (cp.async, two
// pieces by turns), split by channel into words of four neighbours, then each lane takes the taps of one output column.
#pragma once

#include "device/resample.cuh"

namespace kpl::resample {

constexpr int kThreads = 256, kWarps = kThreads / KPL_WARP;
constexpr int kStrip = KPL_WARP;      // output columns of a block, one a lane
constexpr int kRows = 4;              // rows of a piece: their results make one word of the pass along columns
constexpr int kPieceWords = 48;       // words of one channel in a row of a piece
constexpr int kPieceBytes = 608;      // 144 * 4 + 15 before + the word after, in steps of 16
constexpr int kMost = 8;              // words of an output column whose digits stay in registers: up to 29 taps
constexpr int kSplitWords = kPieceWords + kMost;  // a column may read past its piece, where its digits are 0
constexpr int kRawBytes = kRows * kPieceBytes;
constexpr int kStageBytes = 2 * kRawBytes + kRows * 3 * kSplitWords * 4;

/// Where a warp stages its rows.
struct Stage {
  unsigned char* raw;  // [2][kRows][kPieceBytes]
  unsigned* words;     // [kRows][3][kSplitWords]
};

static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % KPL_WARP; }
static __device__ __forceinline__ int warp() { return static_cast<int>(threadIdx.x) / KPL_WARP; }

static __device__ __forceinline__ Stage stage_at(unsigned char* memory) {
  unsigned char* own = memory + warp() * kStageBytes;
  return {own, reinterpret_cast<unsigned*>(own + 2 * kRawBytes)};
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

/// Splits what `fetch` brought into words of a channel.
static __device__ __forceinline__ void split(const Picture& picture, long long row, int first, int last,
                                             const unsigned char* raw, unsigned* words) {
  const int count = last - first, channels = static_cast<int>(picture.channels);
  for (int r = 0; r < kRows && row + r < picture.height; ++r) {
    const int before = offset_in_16(pixel_at(picture, row + r, first));
    const unsigned* bytes = reinterpret_cast<const unsigned*>(raw + r * kPieceBytes);
    for (int word = lane(); word < count; word += KPL_WARP) {
      unsigned rgb[3];
      split_pixels(bytes, before + 4 * word * channels, channels, rgb);
      for (int channel = 0; channel < 3; ++channel) words[(r * 3 + channel) * kSplitWords + word] = rgb[channel];
    }
  }
}

/// The digits of one output column: in registers where it has at most kMost words, else read as they are needed.
struct Column {
  int first, bias;
  int digits[3][kMost];
};

static __device__ __forceinline__ Column column_at(const Table& table, int output) {
  Column column = {table.first[output], table.bias[output], {}};
  if (table.words <= kMost) {
#pragma unroll
    for (int word = 0; word < kMost; ++word)
#pragma unroll
      for (int plane = 0; plane < 3; ++plane)
        column.digits[plane][word] = word < table.words ? table.digit(plane, word, output) : 0;
  }
  return column;
}

/// sums[channel] += the taps of a column in words first .. last - 1 of a row; `whole`: all taps are in them.
static __device__ __forceinline__ void add_row(const Table& table, const Column& column, int output, bool whole,
                                               const unsigned* words, int first, int last, unsigned (&sums)[3]) {
  Level levels[3] = {};
  if (whole && table.words <= kMost) {
    const unsigned* own = words + column.first - first;
#pragma unroll
    for (int word = 0; word < kMost; ++word) {
      if (word >= table.words) continue;
#pragma unroll
      for (int channel = 0; channel < 3; ++channel)
        levels[channel].add(static_cast<int>(own[channel * kSplitWords + word]), column.digits[0][word],
                            column.digits[1][word], column.digits[2][word]);
    }
  } else {
    for (int at = max(column.first, first); at < min(column.first + table.words, last); ++at) {
      const int word = at - column.first;
      const int digits[3] = {table.digit(0, word, output), table.digit(1, word, output), table.digit(2, word, output)};
      for (int channel = 0; channel < 3; ++channel)
        levels[channel].add(static_cast<int>(words[channel * kSplitWords + at - first]), digits[0], digits[1],
                            digits[2]);
    }
  }
#pragma unroll
  for (int channel = 0; channel < 3; ++channel) sums[channel] += levels[channel].joined();
}

}  // namespace kpl::resample
