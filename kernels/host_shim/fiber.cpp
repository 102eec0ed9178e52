#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <vector>

#if defined(__x86_64__)
asm(R"(
.text
.globl kpl_shim_switch
.type kpl_shim_switch, @function
kpl_shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size kpl_shim_switch, .-kpl_shim_switch
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl kpl_shim_switch
.type kpl_shim_switch, %function
kpl_shim_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size kpl_shim_switch, .-kpl_shim_switch
)");
#else
#error "the host shim switches fibers on x86-64 and aarch64"
#endif

namespace kpl_shim {
namespace {

constexpr std::size_t kPage = 4096;
std::vector<char*> stacks;

char* map_stack() {
  void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, kPage, PROT_NONE) != 0) std::abort();
  return static_cast<char*>(memory);
}

}  // namespace

void* fresh_stack(std::size_t slot, Entry entry) {
  while (stacks.size() <= slot) stacks.push_back(map_stack());
  // Stacks that began at the same offset of a page would share a few cache sets, and every switch would miss.
  const std::size_t offset = slot % 32 * 128;
  void** top = reinterpret_cast<void**>(stacks[slot] + kStackBytes - kPage - 256 + offset % kPage);
#if defined(__x86_64__)
  *--top = nullptr;  // where entry would return to: keeps the stack as after a call, 8 beyond a multiple of 16
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
#else
  top -= 20;
  for (int i = 0; i < 20; ++i) top[i] = nullptr;
  top[11] = reinterpret_cast<void*>(entry);
#endif
  return top;
}

bool is_stack_guard(const void* address) {
  const char* where = static_cast<const char*>(address);
  for (const char* stack : stacks)
    if (where >= stack && where < stack + kPage) return true;
  return false;
}

}  // namespace kpl_shim
