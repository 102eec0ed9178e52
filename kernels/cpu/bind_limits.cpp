// Measured ceilings of one core, see limits.h.
#include <chrono>
#include <vector>

#include "bind.h"

namespace nb = nanobind;

namespace kpl {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double multiply_adds() {
    const nb::gil_scoped_release release;
    return kernels().multiply_add_rate(now, 2000000);
}

double exponentials() {
    const nb::gil_scoped_release release;
    std::vector<double> data(1024);
    return kernels().exp_rate(now, 20000, data.data(), data.size());
}

double reads(std::size_t bytes) {
    expect_shape(bytes >= 4096, "bytes: expected at least 4096");
    const nb::gil_scoped_release release;
    std::vector<double> data(bytes / sizeof(double), 1.0);
    return kernels().read_rate(now, int64_t((std::size_t(1) << 31) / bytes + 1), data.data(), data.size());
}

}  // namespace

void bind_limits(nb::module_& m) {
    m.def("measure_multiply_adds", multiply_adds, "float64 multiply-adds per second of one core, on registers.");
    m.def("measure_exponentials", exponentials, "Exponentials per second of one core, in the L1 cache.");
    m.def("measure_reads", reads, nb::arg("bytes"), "Bytes per second that one core reads from an array of that size.");
}

}  // namespace kpl
