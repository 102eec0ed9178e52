// First order and corrections of the closed form; the derivation is in kpl_engine/solver/closed_form.py.
#include <limits>

#include "factorisation.h"
#include "passes.h"

namespace kpl {

namespace {

constexpr double kTypicalPasses = 10;  // products with X of a call, at two to four a correction
constexpr double kSharedPasses = 2e8;  // float32 multiply-adds of them, about 2 ms: less is not worth their meetings

class FixedPoint {
public:
    explicit FixedPoint(const FixedPointTask& task)
        : task_(task),
          factorisation_(task.images),
          passes_(task.images, task.c, factorisation_.work() + kTypicalPasses * pass_work(task.images, task.c)),
          c_(task.c),
          ld_(passes_.width()),
          ldf_(round_up(task.images.n, kBlock)),
          wide_(factorisation_.wide()),
          share_passes_(kTypicalPasses * pass_work(task.images, task.c) >= kSharedPasses) {
        const size_t members = size_t(passes_.members());
        const size_t proxies = storage_.add(c_, ld_), split = storage_.add(c_ + 1, ld_), gap = storage_.add(c_, ld_),
                     solved = storage_.add(c_, ld_), direction = storage_.add(2, ld_),
                     partial = storage_.add(passes_.chunks() * c_, ld_), work = storage_.add(members * c_, kBlock),
                     copy = storage_.add(members, passes_.copy_size()),
                     images = storage_.add(wide_ ? c_ : 0, ldf_), panel = storage_.add(c_, passes_.panel());
        factorisation_.reserve(storage_);
        storage_.allocate();
        factorisation_.attach(storage_);
        W_ = storage_.at(proxies);
        V_ = storage_.at(split);
        gap_ = storage_.at(gap);
        solved_ = storage_.at(solved);
        u_ = storage_.at(direction);
        z_ = u_ + ld_;
        partial_ = storage_.at(partial);
        work_ = storage_.at(work);
        copy_ = storage_.at(copy);
        f_ = storage_.at(images);
        panel_ = storage_.at(panel);
        mu_ = std::sqrt(dot(task.mean, task.mean, task.images.d));
        for (size_t k = 0; k < task.images.d; ++k) u_[k] = task.mean[k] / mu_;
    }

    FixedPointResult run() {
        run_together(passes_.members(), [&](const Member& member) { work(member); });
        for (size_t k = 0; k < task_.images.d; ++k)
            for (size_t j = 0; j < c_; ++j) task_.W[k * c_ + j] = W_[j * ld_ + k];
        return result_;
    }

private:
    double n() const { return double(task_.images.n); }
    double* copy_of(const Member& member) const { return copy_ + size_t(member.index) * passes_.copy_size(); }

    void work(const Member& member) {
        make_matrix(member);
        if (member.index == 0) going_ = factor();
        if (!share_passes_) {
            if (member.index == 0) iterate(Member{0, 1, nullptr});
            return;
        }
        meet(member);
        iterate(member);
    }

    void iterate(const Member& member) {
        if (!going_) return;
        first_order(member);
        for (;;) {
            gradient(member);
            meet(member);
            if (member.index == 0) going_ = assess();
            meet(member);
            if (!going_) return;
            solve(member);
            if (member.index == 0) correct();
            meet(member);
        }
    }

    // X Pi Xᵀ + n ridge I, or XᵀX / n + ridge I; ends with all members met.
    void make_matrix(const Member& member) {
        if (wide_)
            passes_.each_block(member, copy_of(member), [&](size_t, size_t first, const RowBlock& block) {
                passes_.table().project(block, ld_, u_, ld_, 1, f_ + first, ldf_);
            });
        factorisation_.gram(member);
        factorisation_.condition(member, f_, task_.tau_i * mu_);
        meet(member);
    }

    // The factor of that matrix M, and where n >= d also z = M^-1 u / uᵀM^-1 u.
    bool factor() {
        if (!factorisation_.factor()) return end(Ending::kNotPositive, result_.residual);
        if (wide_) return true;
        std::copy(u_, u_ + ld_, z_);
        passes_.table().solve(factorisation_.result(), z_, ld_, 1, panel_);
        const double inverse = 1.0 / dot(u_, z_, ld_);
        for (size_t k = 0; k < ld_; ++k) z_[k] *= inverse;
        return true;
    }

    // W = unit(-u + dbar + e), see closed_form.py; V is W less its mean over classes.
    void first_order(const Member& member) {
        double* average = V_ + c_ * ld_;
        if (member.index == 0) {
            for (size_t j = 0; j < c_; ++j) {
                const double* column = task_.XtP + j * task_.images.d;
                const double along = dot(u_, column, task_.images.d);
                for (size_t k = 0; k < task_.images.d; ++k) W_[j * ld_ + k] = column[k] - along * u_[k];
            }
            split(W_, c_, ld_, gap_, average);
        }
        meet(member);
        solve(member);
        if (member.index == 0) {
            const double shared = double(c_) / (n() * mu_), own = double(c_) * task_.tau_i / n();
            for (size_t j = 0; j < c_; ++j) {
                for (size_t k = 0; k < ld_; ++k)
                    W_[j * ld_ + k] = shared * average[k] + own * solved_[j * ld_ + k] - u_[k];
                to_unit(W_ + j * ld_, ld_);
            }
            difference_ = split(W_, c_, ld_, V_, average);
        }
        meet(member);
    }

    // partial <- Xᵀ(softmax(X V / tau_i) - P) of each chunk: a shift common to all classes changes no softmax.
    void gradient(const Member& member) {
        const LinearKernels& table = passes_.table();
        clear_partial(member);
        double* R = work_ + size_t(member.index) * c_ * kBlock;
        passes_.each_block(member, copy_of(member), [&](size_t chunk, size_t first, const RowBlock& block) {
            table.project(block, ld_, V_, ld_, c_, R, kBlock);
            table.soften(R, kBlock, c_, block.rows, task_.tau_i);
            for (size_t i = 0; i < block.rows; ++i)
                for (size_t j = 0; j < c_; ++j) R[j * kBlock + i] -= task_.P[(first + i) * c_ + j];
            table.accumulate(block, ld_, R, kBlock, c_, partial_ + chunk * c_ * ld_, ld_);
        });
    }

    void clear_partial(const Member& member) {
        const size_t size = c_ * ld_;
        for (size_t chunk = size_t(member.index); chunk < passes_.chunks(); chunk += size_t(member.count))
            std::fill(partial_ + chunk * size, partial_ + (chunk + 1) * size, 0.0);
    }

    // gap <- unit(-G) - W, split into what classes share (kept in `shared`) and differences. Whether to go on.
    bool assess() {
        add_chunks(partial_, passes_.chunks(), c_ * ld_, gap_);
        for (size_t j = 0; j < c_; ++j) {
            double* gap = gap_ + j * ld_;
            const double length = std::sqrt(dot(gap, gap, ld_));
            if (!(length > 0)) return end(Ending::kVanished, result_.residual);
            const double scale = -1.0 / length;
            for (size_t k = 0; k < ld_; ++k) gap[k] = gap[k] * scale - W_[j * ld_ + k];
        }
        const double error = split(gap_, c_, ld_, gap_, V_ + c_ * ld_);
        // Differences below 1e-14 are rounding of unit columns: the classes are the same direction.
        const double now = difference_ > 1e-14 ? error / difference_ : 0.0;
        if (now <= task_.tolerance) return end(Ending::kReached, now);
        if (!(now <= 0.5 * result_.residual)) return end(Ending::kStalled, now);
        if (result_.corrections >= task_.max_corrections) return end(Ending::kUnfinished, now);
        result_.residual = now;
        return true;
    }

    bool end(Ending ending, double residual) {
        result_.ending = ending;
        result_.residual = residual;
        return false;
    }

    // W <- unit(W + shared + tau_i mu (S + tau_i mu I)^-1 gap).
    void correct() {
        const double ridge = task_.tau_i * mu_;
        const double* shared = V_ + c_ * ld_;
        for (size_t j = 0; j < c_; ++j) {
            for (size_t k = 0; k < ld_; ++k) W_[j * ld_ + k] += shared[k] + ridge * solved_[j * ld_ + k];
            to_unit(W_ + j * ld_, ld_);
        }
        difference_ = split(W_, c_, ld_, V_, V_ + c_ * ld_);
        ++result_.corrections;
    }

    // solved <- (S + ridge I)^-1 gap; ends with all members met.
    void solve(const Member& member) {
        if (wide_)
            solve_wide(member);
        else if (member.index == 0)
            solve_tall();
        meet(member);
    }

    // Along u the matrix is the ridge. Across it, y = M^-1 (F - λ u), with the λ that makes uᵀy = 0.
    void solve_tall() {
        std::copy(gap_, gap_ + c_ * ld_, solved_);
        passes_.table().solve(factorisation_.result(), solved_, ld_, c_, panel_);
        const double ridge = task_.tau_i * mu_;
        for (size_t j = 0; j < c_; ++j) {
            double* solved = solved_ + j * ld_;
            const double across = dot(u_, solved, ld_), along = dot(u_, gap_ + j * ld_, ld_) / ridge;
            for (size_t k = 0; k < ld_; ++k) solved[k] += along * u_[k] - across * z_[k];
        }
    }

    // By Woodbury, with B = X Pi: (F - Bᵀ (n ridge I + B Bᵀ)^-1 B F) / ridge.
    void solve_wide(const Member& member) {
        const LinearKernels& table = passes_.table();
        if (member.index == 0) without_direction(gap_, solved_);
        clear_partial(member);
        meet(member);
        passes_.each_block(member, copy_of(member), [&](size_t, size_t first, const RowBlock& block) {
            table.project(block, ld_, solved_, ld_, c_, f_ + first, ldf_);
        });
        meet(member);
        if (member.index == 0) table.solve(factorisation_.result(), f_, ldf_, c_, panel_);
        meet(member);
        passes_.each_block(member, copy_of(member), [&](size_t chunk, size_t first, const RowBlock& block) {
            table.accumulate(block, ld_, f_ + first, ldf_, c_, partial_ + chunk * c_ * ld_, ld_);
        });
        meet(member);
        if (member.index != 0) return;
        add_chunks(partial_, passes_.chunks(), c_ * ld_, solved_);
        without_direction(solved_, solved_);
        const double inverse = 1.0 / (task_.tau_i * mu_);
        for (size_t k = 0; k < c_ * ld_; ++k) solved_[k] = (gap_[k] - solved_[k]) * inverse;
    }

    // out <- Pi F
    void without_direction(const double* F, double* out) const {
        for (size_t j = 0; j < c_; ++j) {
            const double along = dot(u_, F + j * ld_, ld_);
            for (size_t k = 0; k < ld_; ++k) out[j * ld_ + k] = F[j * ld_ + k] - along * u_[k];
        }
    }

    const FixedPointTask& task_;
    Factorisation factorisation_;
    const Passes passes_;
    const size_t c_, ld_, ldf_;
    const bool wide_, share_passes_;
    Storage storage_;
    double *W_, *V_, *gap_, *solved_, *u_, *z_, *partial_, *work_, *copy_, *f_, *panel_;
    double mu_ = 0.0, difference_ = 0.0;
    bool going_ = true;
    FixedPointResult result_ = {Ending::kUnfinished, 0, std::numeric_limits<double>::infinity()};
};

}  // namespace

FixedPointResult fixed_point(const FixedPointTask& task) { return FixedPoint(task).run(); }

}  // namespace kpl
