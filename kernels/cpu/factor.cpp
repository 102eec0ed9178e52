// The matrix of the closed form and its Cholesky factor, in blocks that the members of a call share.
#include "factorisation.h"

#include "passes.h"

namespace kpl {

namespace {

constexpr size_t kDeep = 512;   // of the inner dimension between two meetings: 1.5 MiB packed for all members
constexpr size_t kDepth = 128;  // of it in one product: a packed block of columns fits the L1 cache

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
    pack_at_ = storage.add(2 * kDeep, blocks_ * block_ / 2);
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
void Factorisation::pack(float* out, size_t q, size_t k, size_t depth) const {
    const float* data = static_cast<const float*>(images_.X.data);
    const ptrdiff_t stride = images_.X.row_stride;
    const size_t count = width(q);
    for (size_t l = 0; !wide_ && l < depth; ++l)
        std::memcpy(out + l * block_, data + ptrdiff_t(k + l) * stride + q * block_, count * sizeof(float));
    for (size_t v = 0; wide_ && v < count; ++v) {
        const float* row = data + ptrdiff_t(q * block_ + v) * stride + k;
        for (size_t l = 0; l < depth; ++l) out[l * block_ + v] = row[l];
    }
}

// Block (p, q) += the product of two packed blocks of columns.
void Factorisation::multiply(const float* packed, size_t p, size_t q, size_t depth) const {
    for (size_t k = 0; k < depth; k += kDepth)
        kernels_.linear->update(packed + (p * kDeep + k) * block_, block_, packed + (q * kDeep + k) * block_, block_,
                                std::min(kDepth, depth - k), width(p), vectors(q), p == q, 1.0f, at(p, q), ld_);
}

// Xᵀ X (d, d), or X Xᵀ (n, n) where n < d. Two packed pieces take turns, so that one meeting a piece is enough.
void Factorisation::gram(const Member& member) const {
    const size_t inner = wide_ ? images_.d : images_.n, members = size_t(member.count), size = kDeep * blocks_ * block_;
    float* packed = pack_;
    for (size_t k = 0; k < inner; k += kDeep, packed = packed == pack_ ? pack_ + size : pack_) {
        const size_t depth = std::min(kDeep, inner - k);
        for (size_t q = size_t(member.index); q < blocks_; q += members) pack(packed + q * kDeep * block_, q, k, depth);
        meet(member);
        size_t turn = 0;
        for (size_t p = 0; p < blocks_; ++p)
            for (size_t q = p; q < blocks_; ++q)
                if (turn++ % members == size_t(member.index)) multiply(packed, p, q, depth);
    }
    meet(member);
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

// A block of rows after the other: its diagonal block, what is right of it, and what they take from the rest. By one
// member alone: at most a quarter of the work, and three meetings a block would cost more than they gain.
bool Factorisation::factor() const {
    const LinearKernels& table = *kernels_.linear;
    for (size_t b = 0; b < blocks_; ++b) {
        const size_t rows = width(b);
        if (!table.factor_diagonal(at(b, b), ld_, rows, vectors(b))) return false;
        for (size_t q = b + 1; q < blocks_; ++q)
            table.divide(at(b, b), ld_, rows, vectors(q), at(b, q), ld_);
        for (size_t p = b + 1; p < blocks_; ++p)
            for (size_t q = p; q < blocks_; ++q)
                table.update(at(b, p), ld_, at(b, q), ld_, rows, width(p), vectors(q), p == q, -1.0f, at(p, q), ld_);
    }
    return true;
}

}  // namespace kpl
