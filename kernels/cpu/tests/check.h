// What the native tests share: a count of failures, the choice of the instruction set, and random numbers that are
// the same on every machine.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>

#include "core.h"

namespace check {

inline int failures = 0;

// Counts a failure and prints the message, printf style, unless `holds`. Only the first 20 are printed.
#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
inline bool expect(bool holds, const char* format, ...) {
    if (holds) return true;
    if (++failures <= 20) {
        std::va_list arguments;
        va_start(arguments, format);
        std::fprintf(stderr, "FAILED [%s] ", kpl::kernels().name);
        std::vfprintf(stderr, format, arguments);
        std::fputc('\n', stderr);
        va_end(arguments);
    }
    return false;
}

// The exit status of a test program: `body` under the instruction set named by the only argument, or under each in
// turn without one. 77 where this machine does not have the set.
inline int run(int argc, char** argv, const std::function<void()>& body) {
    const char* wanted = argc > 1 ? argv[1] : nullptr;
    bool found = false;
    for (const char* const* name = kpl::kernel_names(); *name; ++name) {
        if (wanted && std::strcmp(*name, wanted) != 0) continue;
        found = true;
        expect(kpl::use_kernels(*name) && std::strcmp(kpl::kernels().name, *name) == 0, "%s: not chosen", *name);
        body();
    }
    if (!found) {
        std::printf("skipped: this processor cannot run %s\n", wanted);
        return 77;
    }
    if (failures) std::fprintf(stderr, "%d failures\n", failures);
    return failures ? 1 : 0;
}

// xorshift64*: Vigna, An experimental exploration of Marsaglia's xorshift generators, 2016.
class Random {
public:
    explicit Random(std::uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}

    std::uint64_t bits() {
        state_ ^= state_ >> 12;
        state_ ^= state_ << 25;
        state_ ^= state_ >> 27;
        return state_ * 0x2545f4914f6cdd1du;
    }

    // Uniform in [low, high).
    double uniform(double low, double high) { return low + (high - low) * double(bits() >> 11) * 0x1p-53; }

    // Sum of four uniforms: near enough to a normal number of variance 1 for test data.
    double normal() {
        double total = 0.0;
        for (int i = 0; i < 4; ++i) total += uniform(-1.0, 1.0);
        return total * 0.8660254037844386;
    }

private:
    std::uint64_t state_;
};

}  // namespace check
