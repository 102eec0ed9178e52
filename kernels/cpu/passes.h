// Passes over the rows of X, shared out to threads, and small sums over classes and chunks.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "closed_form.h"
#include "linear_kernels.h"
#include "storage.h"
#include "threads.h"

namespace kpl {

constexpr size_t kBlock = 64;         // rows: 192 KiB of 768 float32 stay in the L2 cache between two products
constexpr size_t kMaxChunks = 16;     // more would cost memory for their sums, fewer would leave threads idle
constexpr size_t kMaxSums = 1 << 20;  // doubles that the sums of all chunks may take
constexpr double kThreadWork = 1e8;   // float32 multiply-adds, about 1 ms; starting a thread takes 0.03 ms or more

// Float32 multiply-adds that take as long as one product with X in float64: few columns leave it to wait for loads.
inline double pass_work(const Images& images, size_t columns) {
    return 4.0 * double(images.n) * double(images.d) * double(columns);
}

// X as the kernels want it: chunks of blocks of rows, each row readable over whole vectors.
class Passes {
public:
    // `work`: float32 multiply-adds of the whole call, by which threads are worth their start.
    Passes(const Images& images, size_t columns, double work)
        : kernels_(kernels()), images_(images), width_(round_up(images.d, kernels_.lanes)) {
        const size_t most = std::max<size_t>(1, std::min(kMaxChunks, kMaxSums / (columns * width_)));
        chunk_ = round_up((images.n + most - 1) / most, kBlock);
        chunks_ = (images.n + chunk_ - 1) / chunk_;
        const size_t useful = work < kThreadWork ? 1 : chunks_;
        members_ = int(std::min<size_t>(size_t(std::max(1, images.threads)), useful));
    }

    // The instruction set of the whole call: another thread may choose another one meanwhile.
    const LinearKernels& table() const { return *kernels_.linear; }
    size_t panel() const { return kernels_.panel; }
    int members() const { return members_; }
    size_t width() const { return width_; }
    size_t chunks() const { return chunks_; }
    // Doubles of work space for one member: rows that do not fill whole vectors are copied there.
    size_t copy_size() const { return width_ == images_.d ? 0 : kBlock * width_; }

    // body(chunk, first row, block) for the blocks of this member's chunks.
    template <typename Body>
    void each_block(const Member& member, double* copy, Body body) const {
        const size_t size = images_.X.is_float32 ? sizeof(float) : sizeof(double);
        const char* data = static_cast<const char*>(images_.X.data);
        for (size_t chunk = size_t(member.index); chunk < chunks_; chunk += size_t(member.count)) {
            const size_t end = std::min(images_.n, (chunk + 1) * chunk_);
            for (size_t first = chunk * chunk_; first < end; first += kBlock) {
                RowBlock block = {data + ptrdiff_t(first) * images_.X.row_stride * ptrdiff_t(size),
                                  images_.X.row_stride, std::min(kBlock, end - first), images_.X.is_float32};
                if (copy_size()) {
                    char* to = reinterpret_cast<char*>(copy);  // zeros beyond d, from when it was allocated
                    const char* from = static_cast<const char*>(block.data);
                    for (size_t i = 0; i < block.rows; ++i)
                        std::memcpy(to + i * width_ * size, from + ptrdiff_t(i) * block.stride * ptrdiff_t(size),
                                    images_.d * size);
                    block.data = copy;
                    block.stride = ptrdiff_t(width_);
                }
                body(chunk, first, block);
            }
        }
    }

private:
    const Kernels& kernels_;
    Images images_;
    size_t width_, chunk_, chunks_;
    int members_;
};

inline void meet(const Member& member) {
    if (member.barrier) wait(*member.barrier);
}

// (rows, c) row by row to (c, ld) column by column.
inline void load_columns(const double* from, size_t rows, size_t c, double* to, size_t ld) {
    for (size_t i = 0; i < rows; ++i)
        for (size_t j = 0; j < c; ++j) to[j * ld + i] = from[i * c + j];
}

// Eight partial sums, added in a fixed order: one would wait for each addition to end before the next begins.
inline double dot(const double* a, const double* b, size_t count) {
    double part[8] = {};
    size_t k = 0;
    for (; k + 8 <= count; k += 8)
        for (size_t lane = 0; lane < 8; ++lane) part[lane] += a[k + lane] * b[k + lane];
    for (; k < count; ++k) part[0] += a[k] * b[k];
    return ((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7]));
}

// The largest |values|. Eight running maxima, as in `dot`; NaN is passed over.
inline double largest_of(const double* values, size_t count) {
    double best[8] = {};
    for (size_t k = 0; k < count; ++k) {
        const double value = std::fabs(values[k]);
        best[k % 8] = value > best[k % 8] ? value : best[k % 8];
    }
    return *std::max_element(best, best + 8);
}

// V (c, ld) <- W less its mean over classes, which goes to `mean` (ld). Returns the largest difference.
inline double split(const double* W, size_t c, size_t ld, double* V, double* mean) {
    std::fill(mean, mean + ld, 0.0);
    for (size_t j = 0; j < c; ++j)
        for (size_t k = 0; k < ld; ++k) mean[k] += W[j * ld + k];
    for (size_t k = 0; k < ld; ++k) mean[k] *= 1.0 / double(c);
    for (size_t j = 0; j < c; ++j)
        for (size_t k = 0; k < ld; ++k) V[j * ld + k] = W[j * ld + k] - mean[k];
    return largest_of(V, c * ld);
}

// out (size) <- the sum of the chunks' parts, in their order.
inline void add_chunks(const double* partial, size_t chunks, size_t size, double* out) {
    std::copy(partial, partial + size, out);
    for (size_t chunk = 1; chunk < chunks; ++chunk)
        for (size_t k = 0; k < size; ++k) out[k] += partial[chunk * size + k];
}

inline void to_unit(double* w, size_t ld) {
    const double inverse = 1.0 / std::sqrt(dot(w, w, ld));
    for (size_t k = 0; k < ld; ++k) w[k] *= inverse;
}

}  // namespace kpl
