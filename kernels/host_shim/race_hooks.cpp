// Where kernels compiled with -fsanitize=thread report their accesses. The library of that sanitizer is not linked:
// these are the hooks that g++ and clang++ call.
#include <cstddef>
#include <cstring>

#include "race.h"

namespace {
void note(const void* address, std::size_t size, bool is_write, const void* code) {
  kpl_shim::race_access(address, size, is_write, code);
}
}  // namespace

#define HERE __builtin_return_address(0)
#define HOOKS(size)                                                                          \
  void __tsan_read##size(void* at) { note(at, size, false, HERE); }                          \
  void __tsan_write##size(void* at) { note(at, size, true, HERE); }                          \
  void __tsan_unaligned_read##size(void* at) { note(at, size, false, HERE); }                \
  void __tsan_unaligned_write##size(void* at) { note(at, size, true, HERE); }                \
  void __tsan_volatile_read##size(void* at) { note(at, size, false, HERE); }                 \
  void __tsan_volatile_write##size(void* at) { note(at, size, true, HERE); }                 \
  void __tsan_unaligned_volatile_read##size(void* at) { note(at, size, false, HERE); }       \
  void __tsan_unaligned_volatile_write##size(void* at) { note(at, size, true, HERE); }       \
  void __tsan_read_write##size(void* at) { note(at, size, false, HERE), note(at, size, true, HERE); } \
  void __tsan_unaligned_read_write##size(void* at) { note(at, size, false, HERE), note(at, size, true, HERE); }

extern "C" {
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_read_range(void* at, std::size_t size) { note(at, size, false, HERE); }
void __tsan_write_range(void* at, std::size_t size) { note(at, size, true, HERE); }
void* __tsan_memcpy(void* to, const void* from, std::size_t size) {
  note(from, size, false, HERE);
  note(to, size, true, HERE);
  return std::memcpy(to, from, size);
}
void* __tsan_memset(void* to, int value, std::size_t size) {
  note(to, size, true, HERE);
  return std::memset(to, value, size);
}
void* __tsan_memmove(void* to, const void* from, std::size_t size) {
  note(from, size, false, HERE);
  note(to, size, true, HERE);
  return std::memmove(to, from, size);
}
}
