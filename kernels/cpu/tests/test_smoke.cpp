// The instruction set named by the argument is compiled in, can be chosen, and computes e^0.
#include <cstdio>
#include <cstring>

#include "core.h"

int main(int count, char** words) {
    if (count != 2) return std::puts("expected the name of an instruction set as the only argument"), 2;
    if (!kpl::use_kernels(words[1])) return 77;  // not on this machine
    if (std::strcmp(kpl::kernels().name, words[1]) != 0) return std::puts(kpl::kernels().name), 1;
    double value = 0.0;
    kpl::kernels().exp(&value, &value, 1, true);
    return value == 1.0 ? 0 : 1;
}
