#include "faults.h"

#include <signal.h>
#include <ucontext.h>

#include <cstdint>

#include "fiber.h"
#include "memory.h"
#include "scheduler.h"

namespace kpl_shim {
namespace {

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};
struct sigaction before[5];
alignas(64) char signal_stack[64 << 10];
alignas(64) char leaving_stack[64 << 10];  // the fiber's own may be the one that overflowed
stack_t stack_before;
int fault_signal = 0;
void* fault_address = nullptr;
void* fault_code = nullptr;
const Fiber* fault_fiber = nullptr;

void leave() { abandon_to_main(); }

/// Continues in leave() on another stack: returning from the handler is what restores the signal mask.
void handle(int number, siginfo_t* info, void* raw) {
  auto* context = static_cast<ucontext_t*>(raw);
  fault_signal = number;
  fault_address = info->si_addr;
  fault_fiber = running;
  const std::uintptr_t top = reinterpret_cast<std::uintptr_t>(leaving_stack + sizeof leaving_stack - 64);
#if defined(__x86_64__)
  fault_code = reinterpret_cast<void*>(context->uc_mcontext.gregs[REG_RIP]);
  context->uc_mcontext.gregs[REG_RSP] = static_cast<greg_t>(top - 8);
  context->uc_mcontext.gregs[REG_RIP] = reinterpret_cast<greg_t>(&leave);
#elif defined(__aarch64__)
  fault_code = reinterpret_cast<void*>(context->uc_mcontext.pc);
  context->uc_mcontext.sp = top;
  context->uc_mcontext.pc = reinterpret_cast<std::uintptr_t>(&leave);
#endif
}

}  // namespace

void catch_faults() {
  fault_signal = 0;
  stack_t ours{};
  ours.ss_sp = signal_stack;
  ours.ss_size = sizeof signal_stack;
  sigaltstack(&ours, &stack_before);
  struct sigaction action {};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  for (int i = 0; i < 5; ++i) sigaction(kSignals[i], &action, &before[i]);
}

void release_faults() {
  for (int i = 0; i < 5; ++i) sigaction(kSignals[i], &before[i], nullptr);
  sigaltstack(&stack_before, nullptr);
}

std::string fault_message() {
  if (fault_signal == 0 || fault_fiber == nullptr) return "";
  const std::string end = " in " + who(*fault_fiber) + " [pc " + std::to_string(reinterpret_cast<std::uintptr_t>(fault_code)) + "]";
  if (fault_signal == SIGFPE) return "division by zero" + end;
  if (fault_signal == SIGILL || fault_signal == SIGTRAP) return "__trap()" + end;
  if (is_stack_guard(fault_address)) return "local memory of more than 128 KB" + end;
  return "an access out of bounds: " + describe(fault_address) + end;
}

}  // namespace kpl_shim
