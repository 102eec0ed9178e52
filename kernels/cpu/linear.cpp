// Sums over images, and the finishing of a solution.
#include <limits>

#include "passes.h"

namespace kpl {

namespace {

constexpr double kNoise = 1e-12;  // what the columns of W, of length 1, are computed to; as in finishing.py

struct Pair {
    size_t best, second;
};

// The largest of z[0], z[ld], ... and the next; the first of equals comes first, as in a stable sort.
Pair best_two(const double* z, size_t ld, size_t c) {
    Pair top = {0, c};
    for (size_t j = 1; j < c; ++j) {
        if (z[j * ld] > z[top.best * ld])
            top = {j, top.best};
        else if (top.second == c || z[j * ld] > z[top.second * ld])
            top.second = j;
    }
    return top;
}

class Finisher {
public:
    Finisher(const Images& images, size_t c, const Finish& out)
        : images_(images), out_(out), passes_(images, c + 1, pass_work(images, c + 2)), c_(c), ld_(passes_.width()) {
        const size_t members = size_t(passes_.members());
        const size_t split_at = storage_.add(c + 1, ld_), lengths = storage_.add(1, c),
                     work = storage_.add(members * (c + 2), kBlock), copy = storage_.add(members, passes_.copy_size()),
                     faults = storage_.add(members, 8);
        storage_.allocate();
        V_ = storage_.at(split_at);
        lengths_ = storage_.at(lengths);
        work_ = storage_.at(work);
        copy_ = storage_.at(copy);
        faults_ = storage_.at(faults);
    }

    bool run() {
        load_columns(out_.W, images_.d, c_, V_, ld_);
        split(V_, c_, ld_, V_, V_ + c_ * ld_);
        bool fits = true;
        for (size_t j = 0; j < c_; ++j) {
            lengths_[j] = std::sqrt(dot(V_ + j * ld_, V_ + j * ld_, ld_));
            for (size_t k = 0; k < images_.d; ++k) {
                fits &= narrow(out_.W[k * c_ + j], out_.proxies + k * c_ + j);
                fits &= narrow(V_[j * ld_ + k] * out_.scale, out_.discriminants + k * c_ + j);
            }
        }
        run_together(passes_.members(), [&](const Member& member) { work(member); });
        for (int member = 0; member < passes_.members(); ++member) fits &= faults_[size_t(member) * 8] == 0.0;
        return fits;
    }

private:
    static bool narrow(double value, float* to) {
        *to = float(value);
        return std::fabs(*to) <= std::numeric_limits<float>::max();
    }

    void work(const Member& member) {
        const LinearKernels& table = passes_.table();
        double* Z = work_ + size_t(member.index) * (c_ + 2) * kBlock;
        double* squares = Z + (c_ + 1) * kBlock;
        bool fits = true;
        passes_.each_block(member, copy_ + size_t(member.index) * passes_.copy_size(),
                           [&](size_t, size_t first, const RowBlock& block) {
            table.project(block, ld_, V_, ld_, c_ + 1, Z, kBlock);
            table.squares(block, ld_, squares);
            for (size_t i = 0; i < block.rows; ++i) fits &= finish_row(first + i, Z + i, squares[i]);
        });
        if (!fits) faults_[size_t(member.index) * 8] = 1.0;
    }

    bool finish_row(size_t row, const double* z, double square) const {
        bool fits = true;
        for (size_t j = 0; j < c_; ++j) {
            fits &= narrow(z[c_ * kBlock] + z[j * kBlock], out_.logits + row * c_ + j);
            fits &= narrow(z[j * kBlock] * out_.scale, out_.scores + row * c_ + j);
        }
        const Pair top = best_two(z, kBlock, c_);
        out_.labels[row] = int64_t(top.best);
        out_.undecided[row] = c_ > 1 && is_undecided(top, z[top.best * kBlock] - z[top.second * kBlock], square);
        return fits;
    }

    // margin <= eps ‖x‖ ‖D_a - D_b‖ + noise ‖x‖, see rounding_decides; nearly always ‖D_a‖ + ‖D_b‖ already says no.
    bool is_undecided(const Pair& top, double margin, double square) const {
        const double reach = double(std::numeric_limits<float>::epsilon()) * std::sqrt(square);
        const double noise = kNoise * std::sqrt(square);
        if (margin > reach * (lengths_[top.best] + lengths_[top.second]) + noise) return false;
        const double *a = V_ + top.best * ld_, *b = V_ + top.second * ld_;
        double apart = 0.0;
        for (size_t k = 0; k < ld_; ++k) apart += (a[k] - b[k]) * (a[k] - b[k]);
        return margin <= reach * std::sqrt(apart) + noise;
    }

    const Images& images_;
    const Finish& out_;
    const Passes passes_;
    const size_t c_, ld_;
    Storage storage_;
    double *V_, *lengths_, *work_, *copy_, *faults_;
};

}  // namespace

double moments(const Images& images, const double* P, size_t c, double* mean, double* XtP) {
    const Passes passes(images, c + 1, pass_work(images, c + 2));
    const size_t ld = passes.width(), columns = c + 1, members = size_t(passes.members());
    Storage storage;
    const size_t sums = storage.add(passes.chunks() * columns, ld), total = storage.add(columns, ld),
                 work = storage.add(members * columns, kBlock), copy = storage.add(members, passes.copy_size()),
                 lengths = storage.add(passes.chunks(), kBlock);
    storage.allocate();
    run_together(passes.members(), [&](const Member& member) {
        const LinearKernels& table = passes.table();
        double* A = storage.at(work) + size_t(member.index) * columns * kBlock;
        std::fill(A + c * kBlock, A + columns * kBlock, 1.0);
        passes.each_block(member, storage.at(copy) + size_t(member.index) * passes.copy_size(),
                          [&](size_t chunk, size_t first, const RowBlock& block) {
            load_columns(P + first * c, block.rows, c, A, kBlock);
            table.accumulate(block, ld, A, kBlock, columns, storage.at(sums) + chunk * columns * ld, ld);
            double part[kBlock];
            table.squares(block, ld, part);
            double* lane = storage.at(lengths) + chunk * kBlock;
            for (size_t i = 0; i < block.rows; ++i) lane[i] += part[i];
        });
    });
    double* out = storage.at(total);
    add_chunks(storage.at(sums), passes.chunks(), columns * ld, out);
    for (size_t j = 0; j < c; ++j) std::copy(out + j * ld, out + j * ld + images.d, XtP + j * images.d);
    for (size_t k = 0; k < images.d; ++k) mean[k] = out[c * ld + k] / double(images.n);
    double square = 0.0;
    for (size_t k = 0; k < passes.chunks() * kBlock; ++k) square += storage.at(lengths)[k];
    return square / double(images.n);
}

void squared_lengths(const Images& images, double* lengths) {
    const Passes passes(images, 1, pass_work(images, 1));
    Storage storage;
    const size_t copy = storage.add(size_t(passes.members()), passes.copy_size());
    storage.allocate();
    run_together(passes.members(), [&](const Member& member) {
        passes.each_block(member, storage.at(copy) + size_t(member.index) * passes.copy_size(),
                          [&](size_t, size_t first, const RowBlock& block) {
            passes.table().squares(block, passes.width(), lengths + first);
        });
    });
}

bool finish(const Images& images, size_t c, const Finish& out) { return Finisher(images, c, out).run(); }

}  // namespace kpl
