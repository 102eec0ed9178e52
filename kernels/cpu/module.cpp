// kpl_engine._core: the binding. Arguments are checked in Python; here only types, and what would read out of bounds.
#include "bind.h"
#include "core.h"

namespace nb = nanobind;

NB_MODULE(_core, m) {
    m.doc() = "Compiled core of kpl-engine for the CPU; kpl_engine.solver.cpu is the one place that chooses it.";
    m.def("instruction_set", [] { return kpl::kernels().name; }, "Name of the instruction set in use.");
    m.def("instruction_sets", [] {
        nb::list names;
        for (const char* const* name = kpl::kernel_names(); *name; ++name) names.append(*name);
        return names;
    }, "Names of the sets this processor can run, best last.");
    m.def("use_instruction_set", [](const char* name) {
        if (!kpl::use_kernels(name)) throw nb::value_error("not an instruction set that this processor can run");
    }, nb::arg("name"), "Use the named set from now on, in all threads: for tests and benchmarks.");
    kpl::bind_labels(m);
    kpl::bind_linear(m);
    kpl::bind_limits(m);
    kpl::bind_schedule(m);
}
