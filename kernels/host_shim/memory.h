// Device and shared memory of the shim: one reserved range of addresses, nothing of it readable but what is allocated.
// Each allocation ends (but for alignment) at a page that cannot be touched, and freed addresses are never used again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace kpl_shim {

constexpr std::size_t kSharedBytes = 256 << 10;  // the most a block can have here; GPUs have up to 227 KB
constexpr std::size_t kMaxBlocks = 1024;         // resident at once

/// The whole range: shared memory of all blocks first, allocations after it.
char* arena_begin();
std::size_t arena_bytes();
inline bool in_arena(const void* address) {
  return static_cast<std::size_t>(static_cast<const char*>(address) - arena_begin()) < arena_bytes();
}

/// Shared memory of the resident block `slot`, filled with poison; its end is the end of what may be touched.
unsigned char* fresh_shared(std::size_t slot, std::size_t nbytes);
/// Which block's shared memory `address` lies in, or -1.
int shared_slot(const void* address);

/// 0 when the range is used up.
std::uint64_t allocate(std::size_t nbytes);
bool release(std::uint64_t address);
std::size_t live_allocations();

/// Empty if nobody wrote beside an allocation, else what was found.
std::string broken_guard();
/// "12 bytes past the end of an allocation of 400 bytes at 0x...", for messages.
std::string describe(const void* address);

/// NaN as float and as double, a large number as int.
constexpr std::uint32_t kPoison = 0x7ffbadad;
void poison(void* begin, std::size_t nbytes);

}  // namespace kpl_shim
