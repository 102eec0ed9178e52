// The matrix of the closed form and its Cholesky factor, shared out to the members of a call in blocks.
#include "factorisation.h"

#include "passes.h"

namespace kpl {

namespace {

constexpr size_t kGramDepth = 128;  // of the inner dimension at once: a packed block of columns fits the L1 cache

}  // namespace

Factorisation::Factorisation(const Images& images)
    : kernels_(kernels()),
      images_(images),
      wide_(images.n < images.d),
      size_(wide_ ? images.n : images.d),
      block_(2 * kernels_.panel),
      blocks_((size_ + block_ - 1) / block_),
      // A distance of a multiple of 4 KiB between rows would put a column of blocks into few lines of the cache.
      ld_(blocks_ * block_ + (blocks_ * block_ % 256 == 0 ? 2 * kernels_.lanes : 0)) {}

void Factorisation::reserve(Storage& storage) {
    matrix_at_ = storage.add(size_, (ld_ + 1) / 2);
    pack_at_ = storage.add(kGramDepth, blocks_ * block_ / 2 + 1);
}

void Factorisation::attach(const Storage& storage) {
    matrix_ = reinterpret_cast<float*>(storage.at(matrix_at_));
    pack_ = reinterpret_cast<float*>(storage.at(pack_at_));
}

double Factorisation::work() const {
    const double m = double(size_), inner = double(wide_ ? images_.d : images_.n);
    return m * m * inner / 2 + m * m * m / 6;
}

size_t Factorisation::width(size_t q) const { return std::min(block_, size_ - q * block_); }

int Factorisation::vectors(size_t q) const {
    const size_t lanes = 2 * kernels_.lanes;
    return int((width(q) + lanes - 1) / lanes);
}

// Rows k .. k+depth of the inner dimension, for the columns of block q, in float32 side by side.
void Factorisation::pack(size_t q, size_t k, size_t depth) const {
    const float* data = static_cast<const float*>(images_.X.data);
    const ptrdiff_t stride = images_.X.row_stride;
    float* out = pack_ + q * kGramDepth * block_;
    const size_t count = width(q);
    for (size_t l = 0; !wide_ && l < depth; ++l)
        std::memcpy(out + l * block_, data + ptrdiff_t(k + l) * stride + q * block_, count * sizeof(float));
    for (size_t v = 0; wide_ && v < count; ++v) {
        const float* row = data + ptrdiff_t(q * block_ + v) * stride + k;
        for (size_t l = 0; l < depth; ++l) out[l * block_ + v] = row[l];
    }
}

// body(p, q) for this member's blocks of the upper half with p >= from.
template <typename Body>
void Factorisation::each_block(const Member& member, size_t from, Body body) const {
    size_t turn = 0;
    for (size_t p = from; p < blocks_; ++p)
        for (size_t q = p; q < blocks_; ++q)
            if (turn++ % size_t(member.count) == size_t(member.index)) body(p, q);
}

// Xᵀ X (d, d), or X Xᵀ (n, n) where n < d.
void Factorisation::gram(const Member& member) const {
    const size_t inner = wide_ ? images_.d : images_.n;
    for (size_t k = 0; k < inner; k += kGramDepth) {
        const size_t depth = std::min(kGramDepth, inner - k);
        for (size_t q = size_t(member.index); q < blocks_; q += size_t(member.count)) pack(q, k, depth);
        meet(member);
        each_block(member, 0, [&](size_t p, size_t q) {
            kernels_.linear->update(pack_ + p * kGramDepth * block_, block_, pack_ + q * kGramDepth * block_, block_,
                                    depth, width(p), vectors(q), p == q, 1.0f, at(p, q), ld_);
        });
        meet(member);
    }
}

// Of the Gram matrix: X Pi Xᵀ + n ridge I with a = X u, or XᵀX / n + ridge I.
void Factorisation::condition(const Member& member, const double* along, double ridge) const {
    const float scale = wide_ ? 1.0f : 1.0f / float(images_.n);
    const float added = float(wide_ ? ridge * double(images_.n) : ridge);
    for (size_t i = size_t(member.index); i < size_; i += size_t(member.count)) {
        float* row = matrix_ + i * ld_;
        const float a = wide_ ? float(along[i]) : 0.0f;
        for (size_t k = i; k < size_; ++k) row[k] = wide_ ? row[k] - a * float(along[k]) : row[k] * scale;
        row[i] += added;
    }
}

// A block of rows after the other: its diagonal block, what is right of it, and what they take from the rest.
bool Factorisation::factor(const Member& member) {
    const LinearKernels& table = *kernels_.linear;
    if (member.index == 0) positive_ = true;
    for (size_t b = 0; b < blocks_; ++b) {
        const size_t rows = width(b);
        if (member.index == 0) positive_ = positive_ && table.factor_diagonal(at(b, b), ld_, rows, vectors(b));
        meet(member);
        for (size_t q = b + 1 + size_t(member.index); q < blocks_; q += size_t(member.count))
            table.divide(at(b, b), ld_, rows, vectors(q), at(b, q), ld_);
        meet(member);
        each_block(member, b + 1, [&](size_t p, size_t q) {
            table.update(at(b, p), ld_, at(b, q), ld_, rows, width(p), vectors(q), p == q, -1.0f, at(p, q), ld_);
        });
        meet(member);
    }
    return positive_;
}

}  // namespace kpl
