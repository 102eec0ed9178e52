// Stacks and the switch between them. A switch saves the registers a call must keep and changes the stack pointer:
// a few nanoseconds, no system call.
#pragma once

#include <cstddef>

namespace kpl_shim {

using Entry = void (*)();

/// Continues at `to`; what is left behind continues when somebody switches to what is stored in `from`.
extern "C" void kpl_shim_switch(void** from, void* to);

/// Stack number `slot`, made at its first use, ready to run `entry` (which must not return).
void* fresh_stack(std::size_t slot, Entry entry);

/// Whether `address` lies in the unmapped page below a fiber's stack.
bool is_stack_guard(const void* address);

constexpr std::size_t kMaxFibers = 65536;
constexpr std::size_t kStackBytes = 128 << 10;

}  // namespace kpl_shim
