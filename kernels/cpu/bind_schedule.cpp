// Runs of the schedule: one, or many independent ones spread over threads.
#include <atomic>
#include <vector>

#include "bind.h"
#include "schedule.h"
#include "threads.h"

namespace nb = nanobind;

namespace kpl {
namespace {

void check(const Problem& problem, const AnyMatrix& T, const WritableRows& W, const WritableRows& Z) {
    expect_shape(problem.n > 0 && problem.d > 0 && problem.c > 0, "X, T: expected no empty axis");
    expect_shape(T.shape(0) == problem.d, "T: expected (d, c) with the d of X");
    expect_shape(W.shape(0) == problem.d && W.shape(1) == problem.c, "W: expected (d, c)");
    expect_shape(Z.shape(0) == problem.n && Z.shape(1) == problem.c, "Z: expected (n, c)");
    expect_shape(problem.threads > 0, "threads: expected at least 1");
}

Problem problem_of(const AnyMatrix& X, const AnyMatrix& T, const WritableRows& W, const WritableRows& Z,
                   const ScheduleOptions& options, int threads) {
    const Problem problem = {X.shape(0), X.shape(1), T.shape(1), matrix_of(X, "X"), matrix_of(T, "T"),
                             nullptr,    {},         options,    threads};
    check(problem, T, W, Z);
    return problem;
}

void set_labels(Problem& problem, const Rows& P) {
    expect_shape(P.shape(0) == problem.n && P.shape(1) == problem.c, "P: expected (n, c)");
    problem.P = P.data();
}

// (method, tau_t, gamma, iters, prior or None, alpha) as in `refine_labels`.
void set_labels(Problem& problem, const nb::tuple& choice) {
    expect_shape(choice.size() == 6, "labels: expected (method, tau_t, gamma, iters, prior, alpha)");
    const int method = nb::cast<int>(choice[0]);
    expect_shape(method >= 0 && method <= int(LabelMethod::stream), "labels: expected a method from 0 to 3");
    problem.labels = {LabelMethod(method),           nb::cast<double>(choice[1]), nb::cast<double>(choice[2]),
                      nb::cast<int64_t>(choice[3]), nullptr,                     nb::cast<double>(choice[5])};
    if (choice[4].is_none()) return;
    const auto prior = nb::cast<Vector>(choice[4], false);
    expect_shape(prior.shape(0) == problem.c, "prior: expected (c,)");
    problem.labels.prior = prior.data();
}

nb::tuple record(const Outcome& outcome) {
    const ScheduleResult& result = outcome.result;
    return nb::make_tuple(result.iterations, result.halvings, result.norm, result.last_change, result.settled,
                          result.frozen, outcome.mass, outcome.hardened, outcome.label_seconds,
                          outcome.seconds);
}

// Whether a signal handler of Python, Ctrl-C's for one, raised; only the main thread runs those.
bool was_interrupted() {
    const nb::gil_scoped_acquire acquire;
    return PyErr_CheckSignals() != 0;
}

template <void (*solve)(const Problem&, Outcome&)>
nb::tuple run(const AnyMatrix& X, const AnyMatrix& T, const Rows& P, const WritableRows& W, const WritableRows& Z,
              double lr, double tau_i, int64_t iters, double max_drift, bool early_exit, double movement, int threads) {
    Problem problem = problem_of(X, T, W, Z, {lr, tau_i, iters, max_drift, early_exit, movement}, threads);
    set_labels(problem, P);
    Outcome outcome = {W.data(), Z.data(), {}, 0, 0, 0, 0};
    problem.stop = was_interrupted;
    {
        const nb::gil_scoped_release release;
        solve(problem, outcome);
    }
    if (PyErr_Occurred()) throw nb::python_error();
    return record(outcome);
}

void multiply(const AnyMatrix& X, const AnyMatrix& T, const WritableRows& out) {
    const size_t n = X.shape(0), d = X.shape(1), c = T.shape(1);
    expect_shape(n > 0 && d > 0 && c > 0, "X, T: expected no empty axis");
    expect_shape(T.shape(0) == d, "T: expected (d, c) with the d of X");
    expect_shape(out.shape(0) == n && out.shape(1) == c, "out: expected (n, c)");
    const Matrix images = matrix_of(X, "X"), columns = matrix_of(T, "T");
    const nb::gil_scoped_release release;
    multiply_rows(images, n, d, columns, c, out.data());
}

struct Task {
    Problem problem;
    Outcome outcome;
    bool dual;
};

// One item of solve_many; the arrays live as long as the list that the caller holds.
Task task_of(const nb::tuple& item) {
    expect_shape(item.size() == 12, "problem: expected 12 parts");
    const auto W = nb::cast<WritableRows>(item[3], false), Z = nb::cast<WritableRows>(item[4], false);
    const ScheduleOptions options = {nb::cast<double>(item[5]), nb::cast<double>(item[6]), nb::cast<int64_t>(item[7]),
                                     nb::cast<double>(item[8]), true,                      nb::cast<double>(item[9])};
    Problem problem = problem_of(nb::cast<AnyMatrix>(item[0], false), nb::cast<AnyMatrix>(item[1], false), W, Z,
                                 options, nb::cast<int>(item[11]));
    if (nb::isinstance<nb::tuple>(item[2]))
        set_labels(problem, nb::cast<nb::tuple>(item[2]));
    else
        set_labels(problem, nb::cast<Rows>(item[2], false));
    return {problem, {W.data(), Z.data(), {}, 0, 0, 0, 0}, nb::cast<bool>(item[10])};
}

nb::list solve_many(const nb::list& problems, int threads) {
    expect_shape(threads > 0, "threads: expected at least 1");
    std::vector<Task> tasks;
    for (const nb::handle item : problems) tasks.push_back(task_of(nb::cast<nb::tuple>(item)));
    std::atomic<bool> stopped{false};
    {
        const nb::gil_scoped_release release;
        run_each(threads, tasks.size(), [&](std::size_t index) {
            Task& task = tasks[index];
            if (stopped) return;
            task.problem.stop = [&] {
                if (!stopped && was_interrupted()) stopped = true;
                return stopped.load();
            };
            task.dual ? solve_dual(task.problem, task.outcome) : solve_primal(task.problem, task.outcome);
        });
    }
    if (PyErr_Occurred()) throw nb::python_error();
    nb::list records;
    for (const Task& task : tasks) records.append(record(task.outcome));
    return records;
}

}  // namespace

void bind_schedule(nb::module_& m) {
    m.def("multiply_rows", multiply, nb::arg("X"), nb::arg("T"), nb::arg("out").noconvert(),
          "out (n, c) <- X T in float64; a row does not depend on its neighbours, to the bit.");
    const char* text =
        "Run the schedule from T with hardened labels P; fills W (d, c) and Z (n, c).\n\n"
        "Returns (iterations, halvings, gradient norm, last relative change of it, left by early exit, frozen,\n"
        "mass of the labels, hardened rows, seconds spent on labels, seconds).";
    const auto define = [&](const char* name, auto function) {
        m.def(name, function, nb::arg("X"), nb::arg("T"), nb::arg("P"), nb::arg("W").noconvert(),
              nb::arg("Z").noconvert(), nb::arg("lr"), nb::arg("tau_i"), nb::arg("iters"), nb::arg("max_drift"),
              nb::arg("early_exit"), nb::arg("movement"), nb::arg("threads"), text);
    };
    define("run_dual", run<solve_dual>);
    define("run_primal", run<solve_primal>);
    m.def("solve_many", solve_many, nb::arg("problems"), nb::arg("threads"),
          "Independent problems, dealt out to `threads` threads. Each is a tuple (X, T, labels, W, Z, lr, tau_i,\n"
          "iters, max_drift, movement, dual, its own threads) with labels P (n, c), or (method, tau_t, gamma, iters,\n"
          "prior, alpha) to make them from X T in the same call.");
}

}  // namespace kpl
