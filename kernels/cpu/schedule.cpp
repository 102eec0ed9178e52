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
void find_similarities(const Kernels& table, const Problem& problem, double* W, size_t ldw, double* copy, double* S,
                       size_t ld) {
    PrimalTask task = {};
    task.n = problem.n;
    task.d = problem.d;
    task.c = problem.c;
    task.ldw = ldw;
    task.block = kBlockRows;
    task.X = problem.X;
    task.W = W;
    task.work = copy;
    table.similarities(task, S, ld);
}

// P (c, ld) from X and W = T (c, ldw): similarities, labels, hardening.
size_t make_labels(const Kernels& table, const Problem& problem, double* W, size_t ldw, double* P, size_t ld) {
    Storage storage;
    const size_t copy = storage.add(kBlockRows, ldw), work = storage.add(1, label_work(problem.c, ld));
    storage.allocate();
    find_similarities(table, problem, W, ldw, storage.at(copy), P, ld);
    const LabelChoice& choice = problem.labels;
    table.refine({problem.n, problem.c, ld, choice.method, choice.tau_t, choice.gamma, choice.iters, choice.prior, P, P,
                  storage.at(work)});
    return table.harden(P, problem.n, problem.c, ld, choice.alpha);
}

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

void load_labels(const Kernels& table, const Problem& problem, double* W, size_t ldw, double* P, size_t ld,
                 Outcome& outcome) {
    const auto start = Clock::now();
    outcome.hardened = 0;
    if (problem.P) {
        for (size_t j = 0; j < problem.c; ++j)
            for (size_t i = 0; i < problem.n; ++i) P[j * ld + i] = problem.P[i * problem.c + j];
    } else {
        outcome.hardened = make_labels(table, problem, W, ldw, P, ld);
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

// Classes with the same start and the same labels have the same proxies; rounding may have parted them.
template <typename Columns>
void join_equal_classes(const Problem& problem, const double* P, size_t ld, Columns copy_column) {
    const auto same_start = [&](size_t i, size_t j) {
        for (size_t k = 0; k < problem.d; ++k)
            if (entry(problem.T, k, i) != entry(problem.T, k, j)) return false;
        return true;
    };
    for (size_t j = 1; j < problem.c; ++j)
        for (size_t i = 0; i < j; ++i)
            if (same_start(i, j) && std::equal(P + i * ld, P + i * ld + problem.n, P + j * ld)) {
                copy_column(i, j);
                break;
            }
}

template <typename Task>
void begin_task(Task& task, const Problem& problem) {
    task.n = problem.n;
    task.d = problem.d;
    task.c = problem.c;
    task.X = problem.X;
    task.options = problem.options;
}

void store_logits(const DualTask& task, Outcome& outcome) { store_rows(task.Z, task.ld, task.n, task.c, outcome.Z); }
void store_logits(const PrimalTask&, Outcome&) {}  // written in place

// Start and labels into the task's arrays, P of row length ld; the run; W and how it ended out of them.
template <typename Task>
void run_task(const Kernels& table, const Problem& problem, Task& task, double* P, size_t ld,
              void (*run)(Task&, const Member&), Outcome& outcome) {
    task.longest = table.longest_row(problem.X, problem.n, problem.d);
    task.shift = needs_shift(problem, task.longest, load_start(problem, task.W, task.ldw));
    load_labels(table, problem, task.W, task.ldw, P, ld, outcome);
    Pace pace(problem.threads, problem.stop);
    task.pace = &pace;
    run_together(problem.threads, [&](const Member& member) { run(task, member); });
    store_rows(task.W, task.ldw, problem.d, problem.c, outcome.W);
    store_logits(task, outcome);
    join_equal_classes(problem, P, ld, [&](size_t from, size_t to) {
        for (size_t k = 0; k < problem.d; ++k) outcome.W[k * problem.c + to] = outcome.W[k * problem.c + from];
        for (size_t i = 0; i < problem.n; ++i) outcome.Z[i * problem.c + to] = outcome.Z[i * problem.c + from];
    });
    outcome.result = task.result;
}

}  // namespace

void multiply_rows(const Matrix& X, size_t n, size_t d, const Matrix& T, size_t c, double* out) {
    const Kernels& table = kernels();
    const size_t ldw = round_up(d, table.lanes);
    const Problem problem = {n, d, c, X, T, nullptr, {}, {}, 1};
    Storage storage;
    const size_t columns = storage.add(c, ldw), copy = storage.add(kBlockRows, ldw), product = storage.add(c, n);
    storage.allocate();
    load_start(problem, storage.at(columns), ldw);
    find_similarities(table, problem, storage.at(columns), ldw, storage.at(copy), storage.at(product), n);
    store_rows(storage.at(product), n, n, c, out);
}

void solve_dual(const Problem& problem, Outcome& outcome) {
    const auto start = Clock::now();
    const Kernels& table = kernels();
    const size_t n = problem.n, c = problem.c, members = size_t(problem.threads);
    DualTask task = {};
    begin_task(task, problem);
    task.ld = padded(n, table.lanes);
    task.ldw = padded(problem.d, table.lanes);
    task.panels = (n + table.panel - 1) / table.panel;
    double* changed = nullptr;
    Storage storage;
    for (double** array : {&task.P, &task.Z, &task.A, &task.R, &task.H}) storage.place(*array, c, task.ld);
    storage.place(task.features, n, task.ldw);
    storage.place(task.pack, members, table.depth * table.panel);
    storage.place(task.K, n, task.ld);
    storage.place(task.rest, 1, task.ld);
    storage.place(task.W, c, task.ldw);
    storage.place(task.partial, task.panels, 3 * c);
    storage.place(task.G, c, task.ldw);
    storage.place(task.scalars, members, 4 * c + 8);
    storage.place(changed, members, 8);
    storage.allocate();
    task.changed = reinterpret_cast<int64_t*>(changed);
    run_task(table, problem, task, task.P, task.ld, table.run_dual, outcome);
    outcome.seconds = seconds_since(start);
}

void solve_primal(const Problem& problem, Outcome& outcome) {
    const auto start = Clock::now();
    const Kernels& table = kernels();
    const size_t n = problem.n, c = problem.c, members = size_t(problem.threads);
    PrimalTask task = {};
    begin_task(task, problem);
    task.ldw = round_up(problem.d, table.lanes);
    task.block = kBlockRows;
    task.ldp = round_up(n, task.block);
    task.slices = problem.threads;
    task.work_size = c * (task.ldw + task.block) + task.block * task.ldw;
    task.Z = outcome.Z;
    double *P = nullptr, *changed = nullptr;
    Storage storage;
    storage.place(P, c, task.ldp);
    storage.place(task.W, c, task.ldw);
    storage.place(task.next, c, task.ldw);
    storage.place(task.G, members * c, task.ldw);
    storage.place(task.work, members, task.work_size);
    storage.place(task.rest, 1, task.ldw);
    storage.place(task.norms, members, c + 8);
    storage.place(changed, members, 8);
    storage.allocate();
    task.P = P;
    task.changed = reinterpret_cast<int64_t*>(changed);
    run_task(table, problem, task, P, task.ldp, table.run_primal, outcome);
    outcome.seconds = seconds_since(start);
}

}  // namespace kpl
