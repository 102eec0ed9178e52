#include "schedule.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "pace.h"
#include "refine.h"
#include "storage.h"
#include "threads.h"

namespace kpl {

namespace {

// Logits past 600 in size could overflow e^x (at 709); below, no row maximum need be subtracted. Both forms take
// exponents as differences of two logits, hence the factor 2.
constexpr double kSafeExponent = 600.0;
constexpr size_t kBlockRows = 64;  // 64 rows of 768 float32 are 192 KiB: they fit the L2 cache with their residuals

double entry(const Matrix& matrix, size_t row, size_t column) {
    const ptrdiff_t at = ptrdiff_t(row) * matrix.row_stride + ptrdiff_t(column) * matrix.column_stride;
    return matrix.is_float32 ? double(static_cast<const float*>(matrix.data)[at])
                             : static_cast<const double*>(matrix.data)[at];
}

// T (d, c) into W (c, ldw); the largest ‖T_j‖.
double load_start(const Problem& problem, double* W, size_t ldw) {
    double widest = 0.0;
    for (size_t j = 0; j < problem.c; ++j) {
        double squared = 0.0;
        for (size_t k = 0; k < problem.d; ++k) {
            const double value = entry(problem.T, k, j);
            W[j * ldw + k] = value;
            squared += value * value;
        }
        widest = std::max(widest, std::sqrt(squared));
    }
    return widest;
}

// The last step leaves unit columns, so |x·w| <= ‖x‖ max(1, ‖T_j‖).
bool needs_shift(const Problem& problem, double longest, double widest) {
    return 2 * longest * std::max(1.0, widest) / problem.options.tau_i > kSafeExponent;
}

// S (c, ld) <- X W with W (c, ldw); `copy` (kBlockRows, ldw) is work space.
void find_similarities(const Problem& problem, double* W, size_t ldw, double* copy, double* S, size_t ld) {
    PrimalTask task = {};
    task.n = problem.n;
    task.d = problem.d;
    task.c = problem.c;
    task.ldw = ldw;
    task.block = kBlockRows;
    task.X = problem.X;
    task.W = W;
    task.work = copy;
    kernels().similarities(task, S, ld);
}

// P (c, ld) from X and W = T (c, ldw): similarities, labels, hardening.
size_t make_labels(const Problem& problem, double* W, size_t ldw, double* P, size_t ld) {
    const Kernels& table = kernels();
    Storage storage;
    const size_t copy = storage.add(kBlockRows, ldw), work = storage.add(1, label_work(problem.c, ld));
    storage.allocate();
    find_similarities(problem, W, ldw, storage.at(copy), P, ld);
    const LabelChoice& choice = problem.labels;
    table.refine({problem.n, problem.c, ld, choice.method, choice.tau_t, choice.gamma, choice.iters, choice.prior, P, P,
                  storage.at(work)});
    return table.harden(P, problem.n, problem.c, ld, choice.alpha);
}

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

void load_labels(const Problem& problem, double* W, size_t ldw, double* P, size_t ld, Outcome& outcome) {
    const auto start = Clock::now();
    outcome.hardened = 0;
    if (problem.P) {
        for (size_t j = 0; j < problem.c; ++j)
            for (size_t i = 0; i < problem.n; ++i) P[j * ld + i] = problem.P[i * problem.c + j];
    } else {
        outcome.hardened = make_labels(problem, W, ldw, P, ld);
    }
    outcome.mass = 0.0;
    for (size_t j = 0; j < problem.c; ++j)
        for (size_t i = 0; i < problem.n; ++i) outcome.mass += P[j * ld + i];
    outcome.label_seconds = seconds_since(start);
}

// (c, ld) class by class to (count, c) row by row.
void store_rows(const double* from, size_t ld, size_t count, size_t c, double* to) {
    for (size_t i = 0; i < count; ++i)
        for (size_t j = 0; j < c; ++j) to[i * c + j] = from[j * ld + i];
}

// A power-of-two distance between classes would put them all into the same few lines of a cache.
size_t padded(size_t count, size_t unit) {
    const size_t size = round_up(count, unit);
    return size % 256 == 0 ? size + unit : size;
}

}  // namespace

void multiply_rows(const Matrix& X, size_t n, size_t d, const Matrix& T, size_t c, double* out) {
    const size_t ldw = round_up(d, kernels().lanes);
    const Problem problem = {n, d, c, X, T, nullptr, {}, {}, 1};
    Storage storage;
    const size_t columns = storage.add(c, ldw), copy = storage.add(kBlockRows, ldw), product = storage.add(c, n);
    storage.allocate();
    load_start(problem, storage.at(columns), ldw);
    find_similarities(problem, storage.at(columns), ldw, storage.at(copy), storage.at(product), n);
    store_rows(storage.at(product), n, n, c, out);
}

void solve_dual(const Problem& problem, Outcome& outcome) {
    const auto start = Clock::now();
    const Kernels& table = kernels();
    const size_t n = problem.n, c = problem.c, members = size_t(problem.threads);
    DualTask task = {};
    task.n = n;
    task.d = problem.d;
    task.c = c;
    task.ld = padded(n, table.lanes);
    task.ldw = padded(problem.d, table.lanes);
    task.panels = (n + table.panel - 1) / table.panel;
    task.X = problem.X;
    task.options = problem.options;
    Storage storage;
    const size_t features = storage.add(n, task.ldw), pack = storage.add(members, table.depth * table.panel),
                 gram = storage.add(n, task.ld), labels = storage.add(c, task.ld), logits = storage.add(c, task.ld),
                 coefficients = storage.add(c, task.ld), residuals = storage.add(c, task.ld),
                 products = storage.add(c, task.ld), rest = storage.add(1, task.ld), proxies = storage.add(c, task.ldw),
                 partial = storage.add(task.panels, 2 * c), scalars = storage.add(members, 4 * c + 8),
                 changed = storage.add(members, 8);
    storage.allocate();
    task.features = storage.at(features);
    task.pack = storage.at(pack);
    task.K = storage.at(gram);
    task.P = storage.at(labels);
    task.Z = storage.at(logits);
    task.A = storage.at(coefficients);
    task.R = storage.at(residuals);
    task.H = storage.at(products);
    task.rest = storage.at(rest);
    task.W = storage.at(proxies);
    task.partial = storage.at(partial);
    task.scalars = storage.at(scalars);
    task.changed = reinterpret_cast<int64_t*>(storage.at(changed));
    task.longest = table.longest_row(problem.X, n, problem.d);
    task.shift = needs_shift(problem, task.longest, load_start(problem, task.W, task.ldw));
    load_labels(problem, task.W, task.ldw, task.P, task.ld, outcome);
    Pace pace(problem.threads);
    task.pace = &pace;
    run_together(problem.threads, [&](const Member& member) { table.run_dual(task, member); });
    store_rows(task.W, task.ldw, problem.d, c, outcome.W);
    store_rows(task.Z, task.ld, n, c, outcome.Z);
    outcome.result = task.result;
    outcome.seconds = seconds_since(start);
}

void solve_primal(const Problem& problem, Outcome& outcome) {
    const auto start = Clock::now();
    const Kernels& table = kernels();
    const size_t n = problem.n, c = problem.c, members = size_t(problem.threads);
    PrimalTask task = {};
    task.n = n;
    task.d = problem.d;
    task.c = c;
    task.ldw = round_up(problem.d, table.lanes);
    task.block = kBlockRows;
    task.ldp = round_up(n, task.block);
    task.X = problem.X;
    task.options = problem.options;
    task.work_size = c * (task.ldw + task.block) + task.block * task.ldw;
    Storage storage;
    const size_t labels = storage.add(c, task.ldp), proxies = storage.add(c, task.ldw),
                 next = storage.add(c, task.ldw), gradients = storage.add(members * c, task.ldw),
                 work = storage.add(members, task.work_size), rest = storage.add(1, task.ldw),
                 norms = storage.add(members, c + 8), changed = storage.add(members, 8);
    storage.allocate();
    double* P = storage.at(labels);
    task.P = P;
    task.W = storage.at(proxies);
    task.next = storage.at(next);
    task.G = storage.at(gradients);
    task.work = storage.at(work);
    task.rest = storage.at(rest);
    task.norms = storage.at(norms);
    task.changed = reinterpret_cast<int64_t*>(storage.at(changed));
    task.Z = outcome.Z;
    task.longest = table.longest_row(problem.X, n, problem.d);
    task.shift = needs_shift(problem, task.longest, load_start(problem, task.W, task.ldw));
    load_labels(problem, task.W, task.ldw, P, task.ldp, outcome);
    Pace pace(problem.threads);
    task.pace = &pace;
    task.slices = problem.threads;
    run_together(problem.threads, [&](const Member& member) { table.run_primal(task, member); });
    store_rows(task.W, task.ldw, problem.d, c, outcome.W);
    outcome.result = task.result;
    outcome.seconds = seconds_since(start);
}

}  // namespace kpl
