// Resampling as Pillow does it, bit for bit: weights in float64, rounded to 22 fractional bits, one pass an axis, each
// rounded and clipped to 8 bits (twin: kpl_engine/imaging/resample.py; filters: triangle, and Keys' cubic with a = -1/2).
//
//   level = clip((2^21 + Σ_t p_t w_t) >> 22)
//
// Four products are one dp4a: a weight of 24 bits is s0 + 2^8 s1 + 2^16 s2 with digits of -128 .. 127, and a level p
// enters as the signed byte p - 128 = p ^ 0x80; 128 Σ w_t, which that leaves out, is in the bias. So four taps of a
// channel cost 3 instructions instead of 4 multiply-adds and 4 extractions, and all sums are those of Pillow mod 2^32.
//
// The weights of an axis are a table of ints: first word [count], bias [count], digits [3][words][count]. A word is four
// neighbours, 4w .. 4w + 3, along the axis; words before and behind the taps have digits 0.
#pragma once

#include "device/platform.cuh"

namespace kpl::resample {

/// One picture and what becomes of it; 8-byte fields, mirrored in kpl_engine/cuda/ops/preprocess.py.
struct Picture {
  const unsigned char* pixels;   // rows `row_stride` bytes apart, readable up to the next multiple of 16 bytes
  long long height, width, row_stride, channels;
  long long resized_height, resized_width;  // of the whole, which is never formed
  long long top, left, rows, columns;       // the window of it that is kept
  long long y, x;                           // where the window lies in the model input
  long long height_first;                   // order of the passes
  long long row_words, column_words;        // of the tables
  long long row_table, column_table;        // where they start, in ints
};

static_assert(sizeof(Picture) == 18 * 8, "mirrored in kpl_engine/cuda/ops/preprocess.py");

struct Table {
  const int *first, *bias, *digits;
  int count, words;

  __device__ __forceinline__ int digit(int plane, int word, int output) const {
    return __ldg(digits + (plane * words + word) * count + output);
  }
};

static __device__ __forceinline__ Table table_at(const int* tables, long long start, long long count, long long words) {
  const int* at = tables + start;
  return {at, at + count, at + 2 * count, static_cast<int>(count), static_cast<int>(words)};
}

/// The filter at distance x; no product may be fused with a sum, for Pillow's are not.
static __device__ __forceinline__ double filter_at(double x, bool is_cubic) {
  x = fabs(x);
  if (!is_cubic) return x < 1.0 ? 1.0 - x : 0.0;
  if (x < 1.0) {
    const double slope = __dadd_rn(__dmul_rn(1.5, x), -2.5);
    return __dadd_rn(__dmul_rn(__dmul_rn(slope, x), x), 1.0);
  }
  if (!(x < 2.0)) return 0.0;
  const double far = __dadd_rn(__dmul_rn(__dadd_rn(x, -5.0), x), 8.0);
  return __dmul_rn(__dadd_rn(__dmul_rn(far, x), -4.0), -0.5);
}

/// Digits of four weights, one plane an int.
struct Digits {
  unsigned plane[3];
};

static __device__ __forceinline__ void put_weight(Digits& word, int byte, int weight) {
  for (int plane = 0; plane < 3; ++plane) {
    const int digit = static_cast<signed char>(weight & 255);
    word.plane[plane] |= static_cast<unsigned>(digit & 255) << (8 * byte);
    weight = (weight - digit) >> 8;
  }
}

/// Sums of four products by digit; the level is asked for at the end.
struct Level {
  int sum[3];

  __device__ __forceinline__ void add(int pixels, int digit0, int digit1, int digit2) {
    sum[0] = __dp4a(pixels, digit0, sum[0]);
    sum[1] = __dp4a(pixels, digit1, sum[1]);
    sum[2] = __dp4a(pixels, digit2, sum[2]);
  }
  /// The three sums as one, which adds up mod 2^32.
  __device__ __forceinline__ unsigned joined() const {
    return static_cast<unsigned>(sum[0]) + (static_cast<unsigned>(sum[1]) << 8) + (static_cast<unsigned>(sum[2]) << 16);
  }
};

/// 0 .. 255
static __device__ __forceinline__ unsigned level_of(unsigned sum, int bias) {
  const int level = static_cast<int>(sum + static_cast<unsigned>(bias)) >> 22;
  return static_cast<unsigned>(min(max(level, 0), 255));
}

/// The word of four bytes at any byte of 4-byte aligned memory.
static __device__ __forceinline__ unsigned word_at(const unsigned* words, int byte) {
  return __funnelshift_r(words[byte / 4], words[byte / 4 + 1], 8 * (byte % 4));
}

/// Four neighbouring pixels of 1, 3 or 4 channels, as one word for each of red, green and blue, signed.
static __device__ __forceinline__ void split_pixels(const unsigned* raw, int byte, int channels, unsigned (&rgb)[3]) {
  const unsigned a = word_at(raw, byte);
  if (channels == 1) {
    rgb[0] = rgb[1] = rgb[2] = a ^ 0x80808080u;
    return;
  }
  const unsigned b = word_at(raw, byte + 4), c = word_at(raw, byte + 8);
  if (channels == 3) {  // a = r0 g0 b0 r1, b = g1 b1 r2 g2, c = b2 r3 g3 b3
    rgb[0] = __byte_perm(__byte_perm(a, b, 0x0630), c, 0x5210);
    rgb[1] = __byte_perm(__byte_perm(a, b, 0x0741), c, 0x6210);
    rgb[2] = __byte_perm(__byte_perm(a, b, 0x0052), c, 0x7410);
  } else {
    const unsigned d = word_at(raw, byte + 12);
    for (int i = 0; i < 3; ++i) {
      const unsigned pair = static_cast<unsigned>(i | ((i + 4) << 4));
      rgb[i] = __byte_perm(__byte_perm(a, b, pair), __byte_perm(c, d, pair), 0x5410);
    }
  }
  for (int i = 0; i < 3; ++i) rgb[i] ^= 0x80808080u;
}

}  // namespace kpl::resample
