// Pictures of any size to model input: the exporter's validation transform (kpl_engine/imaging/preprocess.py, the twin),
// with the bits of Pillow. Device code of the filter: device/resample.cuh.
//
// pictures: num_pictures descriptors, uint8 of 1, 3 or 4 channels -> out (num_pictures, height, width, 3) uint8.
//
// `resample_weights` writes the tables of weights, one thread an output row or column. `preprocess` gives a block 32
// output columns (a lane each) and `band` output rows of one picture. Rows first: a warp takes four source rows at a time
// and stores four results as one word; every kGroups words of rows the block adds them up along columns.
// Columns first (Pillow 13, pictures more than twice as high as wide): a warp makes four output rows of source columns, and
// goes along them at once; its taps are read byte by byte through L1, which is slow and rare.
//
// Bytes: the kept window of each picture once, 7 % more where strips and bands overlap (from L2), out once: of 1920 x 1080
// to 224 3.5 MB + 0.15 MB a picture. Instructions of a warp for four source rows and 32 columns of 20 taps: 216 dp4a, 36
// loads and 48 of indices; 90 to finish 12 levels, 240 to stage the rows; 158 a row. With those along columns 64 pictures
// are 96 million, 33 million of them dp4a. H200, 2.5 to 3 a clock of a multiprocessor (4 at most): predicted 0.14 to
// 0.17 ms, 35 to 42 % of the rate of a copy (238 MB at 4.1 TB/s); dp4a alone, at two a clock, would take 0.07 ms. What
// would go below: the pass along rows as int8 tensor products (m16n8k32), a band matrix of digits against 16 rows.
#include "device/resample_rows.cuh"

namespace kpl::resample {
namespace {

constexpr int kGroups = 64;  // words of rows between two passes along columns

/// The shared memory of a block: stages, then results along rows [kGroups][3][kStrip], then sums [band][3][kStrip].
struct Shared {
  Stage stage;
  unsigned *along_rows, *sums;
};

__device__ Shared share() {
  unsigned char* memory = dynamic_shared();
  unsigned* rest = reinterpret_cast<unsigned*>(memory + num_warps() * kStageBytes);
  return {stage_at(memory), rest, rest + kGroups * 3 * kStrip};
}

/// Which part of a picture a block makes: output columns of a strip and rows of a band, in the window.
struct Part {
  int first_column, last_column, first_row, last_row;
};

/// Words of the source that a range of outputs reads.
struct Span {
  int first, last;
};

__device__ Span span_of(const Table& table, int first, int last, long long size) {
  return {table.first[first], min(table.first[last - 1] + table.words, static_cast<int>((size + 3) / 4))};
}

/// along_rows <- words first .. last - 1 of rows, at most kGroups, of every column of the part.
__device__ __noinline__ void along_rows(const Picture& picture, const Table& table, const Part& part, int first, int last,
                           const Shared& shared) {
  const int output = min(part.first_column + lane(), part.last_column - 1), step = words_of_piece(picture);
  const Span span = span_of(table, part.first_column, part.last_column, picture.width);
  const int pieces = (span.last - span.first + step - 1) / step, groups = (last - first - warp() + num_warps() - 1) / num_warps();
  const auto bring = [&](int task) {
    const int start = span.first + task % pieces * step;
    fetch(picture, 4ll * (first + warp() + task / pieces * num_warps()), start, min(start + step, span.last),
          shared.stage.raw + task % 2 * kRawBytes);
  };
  if (groups > 0) bring(0);
  Sums sums;
  for (int task = 0; task < groups * pieces; ++task) {
    const int piece = task % pieces, group = warp() + task / pieces * num_warps();
    const int start = span.first + piece * step, end = min(start + step, span.last);
    if (task + 1 < groups * pieces)
      bring(task + 1);
    else
      copy_async_commit();  // an empty group: one is always newer than the piece waited for
    copy_async_wait<1>();
    __syncwarp();
    split(picture, 4ll * (first + group), start, end, shared.stage.raw + task % 2 * kRawBytes, shared.stage.words);
    __syncwarp();
    if (piece == 0) sums = {};
    add_rows(table, output, shared.stage.words, start, end, sums);
    __syncwarp();
    if (piece + 1 < pieces) continue;
#pragma unroll
    for (int channel = 0; channel < 3; ++channel)
      shared.along_rows[(group * 3 + channel) * kStrip + lane()] = sums.word(channel, table.bias[output]);
  }
}

/// sums <- or += the taps of the part's output rows in words first .. last - 1 of rows.
__device__ __noinline__ void along_columns(const Table& table, const Part& part, int first, int last, bool add,
                              const Shared& shared) {
  for (int row = part.first_row + warp(); row < part.last_row; row += num_warps()) {
    Level levels[3] = {};
    const int start = table.first[row];
    for (int at = max(start, first); at < min(start + table.words, last); ++at) {
      const int digits[3] = {table.digit(0, at - start, row), table.digit(1, at - start, row),
                             table.digit(2, at - start, row)};
      for (int channel = 0; channel < 3; ++channel)
        levels[channel].add(static_cast<int>(shared.along_rows[((at - first) * 3 + channel) * kStrip + lane()]),
                            digits[0], digits[1], digits[2]);
    }
    for (int channel = 0; channel < 3; ++channel) {
      unsigned& sum = shared.sums[((row - part.first_row) * 3 + channel) * kStrip + lane()];
      sum = (add ? sum : 0u) + levels[channel].joined();
    }
  }
}

/// The model input of one picture, and how to write to it.
struct Target {
  unsigned char* out;  // (height, width, 3)
  int width;
};

__device__ void put(const Picture& picture, const Target& target, int row, int column, unsigned red, unsigned green,
                    unsigned blue) {
  unsigned char* to = target.out + ((picture.y + row) * target.width + picture.x + column) * 3;
  to[0] = static_cast<unsigned char>(red);
  to[1] = static_cast<unsigned char>(green);
  to[2] = static_cast<unsigned char>(blue);
}

__device__ void rows_first(const Picture& picture, const Table& rows, const Table& columns, const Part& part,
                           const Target& target) {
  const Shared shared = share();
  const Span span = span_of(rows, part.first_row, part.last_row, picture.height);
  for (int first = span.first; first < span.last; first += kGroups) {
    const int last = min(first + kGroups, span.last);
    along_rows(picture, columns, part, first, last, shared);
    __syncthreads();
    along_columns(rows, part, first, last, first > span.first, shared);
    __syncthreads();
  }
  if (part.first_column + lane() >= part.last_column) return;
  for (int row = part.first_row + warp(); row < part.last_row; row += num_warps()) {
    const unsigned* sums = shared.sums + (row - part.first_row) * 3 * kStrip + lane();
    const int bias = rows.bias[row];
    put(picture, target, row, part.first_column + lane(), level_of(sums[0], bias), level_of(sums[kStrip], bias),
        level_of(sums[2 * kStrip], bias));
  }
}

/// The levels of one channel at four source columns of an output row, signed; 0 past the picture.
__device__ __noinline__ unsigned down_columns(const Picture& picture, const Table& rows, int row, int word, int channel) {
  const int start = 4 * rows.first[row], end = static_cast<int>(min(picture.height, start + 4ll * rows.words));
  const int count = static_cast<int>(min(4ll, picture.width - 4ll * word));
  const unsigned char* from = pixel_at(picture, 0, word) + (picture.channels == 1 ? 0 : channel);
  unsigned sums[4] = {};
  for (int at = start; at < end; ++at) {
    int weight = 0;
    for (int plane = 2; plane >= 0; --plane)
      weight = (weight << 8) + static_cast<signed char>(rows.digit(plane, (at - start) / 4, row) >> (8 * (at % 4)));
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (e < count) {
        const int level = from[at * picture.row_stride + e * picture.channels];
        sums[e] += static_cast<unsigned>((level - 128) * weight);
      }
  }
  unsigned levels = 0;
#pragma unroll
  for (int e = 0; e < 4; ++e) levels |= level_of(sums[e], rows.bias[row]) << (8 * e);
  return levels ^ 0x80808080u;
}

__device__ __noinline__ void columns_first(const Picture& picture, const Table& rows, const Table& columns, const Part& part,
                              const Target& target) {
  const Shared shared = share();
  const int output = min(part.first_column + lane(), part.last_column - 1);
  const Span span = span_of(columns, part.first_column, part.last_column, picture.width);
  for (int row = part.first_row + kRows * warp(); row < part.last_row; row += kRows * num_warps()) {
    const int next[kRows] = {row, min(row + 1, part.last_row - 1), min(row + 2, part.last_row - 1),
                             min(row + 3, part.last_row - 1)};
    Sums sums = {};
    for (int start = span.first; start < span.last; start += kPieceWords) {
      const int end = min(start + kPieceWords, span.last);
      for (int word = start + lane(); word < end; word += KPL_WARP)
        for (int channel = 0; channel < 3; ++channel)
          shared.stage.words[channel * kPieceWords + word - start] = make_uint4(
              down_columns(picture, rows, next[0], word, channel), down_columns(picture, rows, next[1], word, channel),
              down_columns(picture, rows, next[2], word, channel), down_columns(picture, rows, next[3], word, channel));
      __syncwarp();
      add_rows(columns, output, shared.stage.words, start, end, sums);
      __syncwarp();
    }
    if (part.first_column + lane() >= part.last_column) continue;
    unsigned rgb[3];
#pragma unroll
    for (int channel = 0; channel < 3; ++channel) rgb[channel] = sums.word(channel, columns.bias[output]) ^ 0x80808080u;
    for (int r = 0; r < kRows && row + r < part.last_row; ++r)
      put(picture, target, row + r, output, rgb[0] >> (8 * r), rgb[1] >> (8 * r), rgb[2] >> (8 * r));
  }
}

/// What of the block's part of the model input lies outside the window.
__device__ void fill_rest(const Picture& picture, const Part& canvas, const Target& target, int fill) {
  for (int row = canvas.first_row + warp(); row < canvas.last_row; row += num_warps())
    for (int column = canvas.first_column + lane(); column < canvas.last_column; column += KPL_WARP) {
      const long long y = row - picture.y, x = column - picture.x;
      if (y >= 0 && y < picture.rows && x >= 0 && x < picture.columns) continue;
      unsigned char* to = target.out + (static_cast<long long>(row) * target.width + column) * 3;
      to[0] = to[1] = to[2] = static_cast<unsigned char>(fill);
    }
}

/// The table of one axis: `outputs` outputs from `start` on, of `size` pixels resized to `resized`.
__device__ void write_table(int* tables, long long at, long long outputs, int words, long long start, long long size,
                            long long resized, bool is_cubic) {
  const double scale = static_cast<double>(size) / static_cast<double>(resized), stretch = fmax(scale, 1.0);
  const double support = (is_cubic ? 2.0 : 1.0) * stretch, inverse = 1.0 / stretch;
  int* table = tables + at;
  for (int output = static_cast<int>(threadIdx.x); output < outputs; output += static_cast<int>(blockDim.x)) {
    const double centre = __dmul_rn(static_cast<double>(start + output) + 0.5, scale);
    const int first = max(static_cast<int>(__dadd_rn(__dadd_rn(centre, -support), 0.5)), 0);
    const int last = static_cast<int>(min(static_cast<long long>(__dadd_rn(__dadd_rn(centre, support), 0.5)), size));
    const auto weight_at = [&](int tap) {
      return filter_at(__dmul_rn(__dadd_rn(__dadd_rn(static_cast<double>(tap), -centre), 0.5), inverse), is_cubic);
    };
    double total = 0.0;
    for (int tap = first; tap < last; ++tap) total = __dadd_rn(total, weight_at(tap));
    const double share = 1.0 / total;
    int sum = 0;
    for (int word = 0; word < words; ++word) {
      Digits digits = {};
      for (int byte = 0; byte < 4; ++byte) {
        const int tap = first / 4 * 4 + 4 * word + byte;
        if (tap < first || tap >= last) continue;
        const double scaled = __dmul_rn(__dmul_rn(weight_at(tap), share), 4194304.0);
        const int weight = static_cast<int>(__dadd_rn(scaled, scaled < 0.0 ? -0.5 : 0.5));
        put_weight(digits, byte, weight);
        sum += weight;
      }
      for (int plane = 0; plane < 3; ++plane)
        table[2 * outputs + (plane * words + word) * outputs + output] = static_cast<int>(digits.plane[plane]);
    }
    table[output] = first / 4;
    table[outputs + output] = (1 << 21) + 128 * sum;
  }
}

}  // namespace
}  // namespace kpl::resample

/// Grid: two blocks a picture, its rows and its columns.
extern "C" __global__ void __launch_bounds__(256)
    resample_weights(const kpl::resample::Picture* pictures, int* tables, int is_cubic) {
  const kpl::resample::Picture& picture = pictures[blockIdx.x / 2];
  if (blockIdx.x % 2 == 0)
    kpl::resample::write_table(tables, picture.row_table, picture.rows, static_cast<int>(picture.row_words),
                               picture.top, picture.height, picture.resized_height, is_cubic != 0);
  else
    kpl::resample::write_table(tables, picture.column_table, picture.columns, static_cast<int>(picture.column_words),
                               picture.left, picture.width, picture.resized_width, is_cubic != 0);
}
KPL_EXPORT_KERNEL(resample_weights);

/// Grid: for each picture, bands of rows, and in each band strips of 32 columns.
extern "C" __global__ void __launch_bounds__(256, 2)
    preprocess(const kpl::resample::Picture* pictures, const int* tables, unsigned char* out, int height, int width,
               int band, int fill) {
  using namespace kpl::resample;
  const int strips = (width + kStrip - 1) / kStrip, bands = (height + band - 1) / band;
  const int block = static_cast<int>(blockIdx.x), strip = block % strips, index = block / (strips * bands);
  const Picture& picture = pictures[index];
  const Target target = {out + static_cast<long long>(index) * height * width * 3, width};
  const int top = block / strips % bands * band, left = strip * kStrip;
  const Part canvas = {left, min(left + kStrip, width), top, min(top + band, height)};
  fill_rest(picture, canvas, target, fill);
  const int x = static_cast<int>(picture.x), y = static_cast<int>(picture.y);
  const Part part = {max(canvas.first_column - x, 0), min(canvas.last_column - x, static_cast<int>(picture.columns)),
                     max(canvas.first_row - y, 0), min(canvas.last_row - y, static_cast<int>(picture.rows))};
  if (part.first_column >= part.last_column || part.first_row >= part.last_row) return;
  const Table rows = table_at(tables, picture.row_table, picture.rows, picture.row_words);
  const Table columns = table_at(tables, picture.column_table, picture.columns, picture.column_words);
  if (picture.height_first != 0)
    columns_first(picture, rows, columns, part, target);
  else
    rows_first(picture, rows, columns, part, target);
}
KPL_EXPORT_KERNEL(preprocess);
