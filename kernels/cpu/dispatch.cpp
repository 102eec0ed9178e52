// Which instruction set runs: decided once, at the first call, from what the processor and its system offer.
#include <atomic>
#include <cstring>

#include "core.h"

namespace kpl {

#if defined(KPL_X86)
namespace baseline { extern const Kernels table; }
namespace avx2 { extern const Kernels table; }
namespace avx512 { extern const Kernels table; }
#elif defined(__aarch64__)
namespace neon { extern const Kernels table; }
#else
namespace baseline { extern const Kernels table; }
#endif

namespace {

struct Choice {
    const Kernels* tables[4] = {};
    const char* names[4] = {};
    int count = 0;

    void add(const Kernels& table) {
        tables[count] = &table;
        names[count++] = table.name;
    }

    Choice() {
#if defined(KPL_X86)
        __builtin_cpu_init();
        add(baseline::table);
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) add(avx2::table);
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") && count == 2)
            add(avx512::table);
#elif defined(__aarch64__)
        add(neon::table);
#else
        add(baseline::table);
#endif
    }
};

const Choice& choice() {
    static const Choice made;
    return made;
}

std::atomic<const Kernels*> in_use{nullptr};

}  // namespace

const Kernels& kernels() {
    const Kernels* table = in_use.load(std::memory_order_acquire);
    return table ? *table : *choice().tables[choice().count - 1];
}

const char* const* kernel_names() { return choice().names; }

bool use_kernels(const char* name) {
    for (int i = 0; i < choice().count; ++i)
        if (std::strcmp(choice().names[i], name) == 0) {
            in_use.store(choice().tables[i], std::memory_order_release);
            return true;
        }
    return false;
}

}  // namespace kpl
