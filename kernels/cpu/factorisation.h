// The matrix of the closed form in float32, made and factored by the members of one call.
#pragma once

#include "closed_form.h"
#include "linear_kernels.h"
#include "storage.h"

namespace kpl {

// XᵀX / n + ridge I (d, d), or X Pi Xᵀ + n ridge I (n, n) where n < d, as UᵀU. X must be float32.
class Factorisation {
public:
    explicit Factorisation(const Images& images);

    void reserve(Storage& storage);
    void attach(const Storage& storage);
    double work() const;  // multiply-adds
    bool wide() const { return wide_; }

    // In this order: every member, every member, one. `along` (n) is X u, used where n < d.
    void gram(const Member& member) const;
    void condition(const Member& member, const double* along, double ridge) const;
    bool factor() const;  // false unless positive definite

    Factor result() const { return {matrix_, size_, ld_}; }

private:
    float* at(size_t p, size_t q) const { return matrix_ + p * block_ * ld_ + q * block_; }
    size_t width(size_t q) const;
    int vectors(size_t q) const;
    void pack(float* out, size_t q, size_t k, size_t depth) const;
    void multiply(const float* packed, size_t p, size_t q, size_t depth) const;

    const Kernels& kernels_;
    const Images images_;
    const bool wide_;
    const size_t size_, block_, blocks_, ld_;
    size_t matrix_at_ = 0, pack_at_ = 0;
    float *matrix_ = nullptr, *pack_ = nullptr;
};

}  // namespace kpl
