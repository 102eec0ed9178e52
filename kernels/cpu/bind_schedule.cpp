// Runs of the schedule: one, or many independent ones spread over threads.
#include <memory>
#include <vector>

#include "bind.h"
#include "schedule.h"
#include "threads.h"

namespace nb = nanobind;

namespace kpl {
namespace {

void check(const Problem& problem, const AnyMatrix& T, const Rows& P, const WritableRows& W, const WritableRows& Z) {
    expect_shape(problem.n > 0 && problem.d > 0 && problem.c > 0, "X, T: expected no empty axis");
    expect_shape(T.shape(0) == problem.d, "T: expected (d, c) with the d of X");
    expect_shape(P.shape(0) == problem.n && P.shape(1) == problem.c, "P: expected (n, c)");
    expect_shape(W.shape(0) == problem.d && W.shape(1) == problem.c, "W: expected (d, c)");
    expect_shape(Z.shape(0) == problem.n && Z.shape(1) == problem.c, "Z: expected (n, c)");
    expect_shape(problem.threads > 0, "threads: expected at least 1");
}

Problem problem_of(const AnyMatrix& X, const AnyMatrix& T, const Rows& P, const WritableRows& W, const WritableRows& Z,
                   const ScheduleOptions& options, int threads) {
    const Problem problem = {X.shape(0),         X.shape(1), T.shape(1), matrix_of(X, "X"),
                             matrix_of(T, "T"), P.data(),   options,    threads};
    check(problem, T, P, W, Z);
    return problem;
}

nb::tuple record(const ScheduleResult& result) {
    return nb::make_tuple(result.iterations, result.halvings, result.norm, result.last_change, result.settled, result.frozen);
}

template <void (*solve)(const Problem&, Outcome&)>
nb::tuple run(const AnyMatrix& X, const AnyMatrix& T, const Rows& P, const WritableRows& W, const WritableRows& Z,
              double lr, double tau_i, int64_t iters, double max_drift, bool early_exit, double movement, int threads) {
    const Problem problem = problem_of(X, T, P, W, Z, {lr, tau_i, iters, max_drift, early_exit, movement}, threads);
    Outcome outcome = {W.data(), Z.data(), {}};
    {
        const nb::gil_scoped_release release;
        solve(problem, outcome);
    }
    return record(outcome.result);
}

struct Task {
    Problem problem;
    Outcome outcome;
    bool dual;
};

// Each problem is a tuple (X, T, P, W, Z, lr, tau_i, iters, max_drift, movement, dual); each runs on one thread.
nb::list run_many(const nb::list& problems, int threads) {
    expect_shape(threads > 0, "threads: expected at least 1");
    std::vector<Task> tasks;
    for (const nb::handle item : problems) {
        const nb::tuple parts = nb::cast<nb::tuple>(item);
        const auto W = nb::cast<WritableRows>(parts[3]), Z = nb::cast<WritableRows>(parts[4]);
        const ScheduleOptions options = {nb::cast<double>(parts[5]), nb::cast<double>(parts[6]),
                                         nb::cast<int64_t>(parts[7]), nb::cast<double>(parts[8]), true,
                                         nb::cast<double>(parts[9])};
        const Problem problem = problem_of(nb::cast<AnyMatrix>(parts[0]), nb::cast<AnyMatrix>(parts[1]),
                                           nb::cast<Rows>(parts[2]), W, Z, options, 1);
        tasks.push_back({problem, {W.data(), Z.data(), {}}, nb::cast<bool>(parts[10])});
    }
    {
        const nb::gil_scoped_release release;
        run_each(threads, tasks.size(), [&](std::size_t index) {
            Task& task = tasks[index];
            task.dual ? solve_dual(task.problem, task.outcome) : solve_primal(task.problem, task.outcome);
        });
    }
    nb::list records;
    for (const Task& task : tasks) records.append(record(task.outcome.result));
    return records;
}

}  // namespace

void bind_schedule(nb::module_& m) {
    const char* text =
        "Run the schedule from T with hardened labels P; fills W (d, c) and Z (n, c).\n\n"
        "Returns (iterations, halvings, gradient norm, last relative change of it, left by early exit, frozen).";
    const auto define = [&](const char* name, auto function) {
        m.def(name, function, nb::arg("X"), nb::arg("T"), nb::arg("P"), nb::arg("W").noconvert(),
              nb::arg("Z").noconvert(), nb::arg("lr"), nb::arg("tau_i"), nb::arg("iters"), nb::arg("max_drift"),
              nb::arg("early_exit"), nb::arg("movement"), nb::arg("threads"), text);
    };
    define("run_dual", run<solve_dual>);
    define("run_primal", run<solve_primal>);
    m.def("run_many", run_many, nb::arg("problems"), nb::arg("threads"),
          "Independent problems (X, T, P, W, Z, lr, tau_i, iters, max_drift, movement, dual), spread over threads.");
}

}  // namespace kpl
