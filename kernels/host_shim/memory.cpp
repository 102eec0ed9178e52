#include "memory.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "race.h"

namespace kpl_shim {
namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kAlign = 256;  // of cudaMalloc
constexpr std::size_t kSlot = kSharedBytes + kPage;
constexpr std::size_t kSharedRange = kSlot * kMaxBlocks;
constexpr unsigned char kGuard = 0xa5;

struct Extent {
  std::size_t nbytes, pages_begin, pages_bytes;
  bool is_live;
};

char* arena = nullptr;
std::size_t arena_size = 0;
std::size_t next_page = kSharedRange;
std::map<std::size_t, Extent> blocks;  // by offset in the arena
std::size_t num_live = 0;

std::size_t round_up(std::size_t value, std::size_t to) { return (value + to - 1) / to * to; }

void reserve() {
  for (arena_size = std::size_t{64} << 30; arena_size >= std::size_t{2} << 30; arena_size /= 2) {
    void* memory = mmap(nullptr, arena_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory != MAP_FAILED) {
      arena = static_cast<char*>(memory);
      return;
    }
  }
  std::fprintf(stderr, "host shim: not even 2 GiB of addresses can be reserved\n");
  std::abort();
}

std::size_t offset_of(const void* address) {
  return static_cast<std::size_t>(static_cast<const char*>(address) - arena_begin());
}

std::string text(const char* form, long long first, long long second, unsigned long long third) {
  char line[200];
  std::snprintf(line, sizeof line, form, first, second, third);
  return line;
}

/// Bytes beside the allocation on its own pages: before its begin and after its end.
template <typename F>
void each_guard(std::size_t offset, const Extent& block, F&& visit) {
  visit(arena + block.pages_begin, arena + offset);
  visit(arena + offset + block.nbytes, arena + block.pages_begin + block.pages_bytes);
}

}  // namespace

char* arena_begin() {
  if (arena == nullptr) reserve();
  return arena;
}

std::size_t arena_bytes() { return arena_size; }

void poison(void* begin, std::size_t nbytes) {
  auto* bytes = static_cast<unsigned char*>(begin);
  std::size_t i = 0;
  for (; i + 4 <= nbytes; i += 4) std::memcpy(bytes + i, &kPoison, 4);
  std::memcpy(bytes + i, &kPoison, nbytes - i);
}

unsigned char* fresh_shared(std::size_t slot, std::size_t nbytes) {
  static std::size_t mapped = 0;
  while (mapped <= slot) mprotect(arena_begin() + mapped++ * kSlot, kSharedBytes, PROT_READ | PROT_WRITE);
  char* end = arena_begin() + slot * kSlot + kSharedBytes;
  char* begin = end - round_up(nbytes, 16);
  poison(begin, round_up(nbytes, 16));
  return reinterpret_cast<unsigned char*>(begin);
}

int shared_slot(const void* address) {
  if (!in_arena(address) || offset_of(address) >= kSharedRange) return -1;
  return static_cast<int>(offset_of(address) / kSlot);
}

std::uint64_t allocate(std::size_t nbytes) {
  arena_begin();
  const std::size_t pages = round_up(nbytes, kPage);
  if (next_page + pages + kPage > arena_size) return 0;
  const std::size_t begin = next_page;
  if (mprotect(arena + begin, pages, PROT_READ | PROT_WRITE) != 0) return 0;
  next_page += pages + kPage;
  const std::size_t offset = begin + pages - round_up(nbytes, kAlign);
  const Extent block{nbytes, begin, pages, true};
  blocks[offset] = block;
  each_guard(offset, block, [](char* from, char* to) { std::memset(from, kGuard, static_cast<std::size_t>(to - from)); });
  poison(arena + offset, nbytes);
  race_allocate(arena + offset, nbytes);
  ++num_live;
  return reinterpret_cast<std::uint64_t>(arena + offset);
}

bool release(std::uint64_t address) {
  const auto found = blocks.find(offset_of(reinterpret_cast<void*>(address)));
  if (found == blocks.end() || !found->second.is_live) return false;
  Extent& block = found->second;
  block.is_live = false;
  --num_live;
  race_release(reinterpret_cast<void*>(address), block.nbytes);
  madvise(arena + block.pages_begin, block.pages_bytes, MADV_DONTNEED);
  mprotect(arena + block.pages_begin, block.pages_bytes, PROT_NONE);
  return true;
}

std::size_t live_allocations() { return num_live; }

std::string broken_guard() {
  std::string found;
  for (const auto& [offset, block] : blocks) {
    if (!block.is_live) continue;
    each_guard(offset, block, [&](char* from, char* to) {
      for (char* at = from; at < to && found.empty(); ++at)
        if (static_cast<unsigned char>(*at) != kGuard) {
          found = "a write out of bounds: " + describe(at);
          *at = static_cast<char>(kGuard);
        }
    });
  }
  return found;
}

std::string describe(const void* address) {
  const auto number = reinterpret_cast<unsigned long long>(address);
  if (!in_arena(address)) return text("address 0x%llx, which is no device memory", static_cast<long long>(number), 0, 0);
  const std::size_t offset = offset_of(address);
  if (offset < kSharedRange)
    return text("shared memory of resident block %lld, %lld bytes before the end of what it may have",
                static_cast<long long>(offset / kSlot),
                static_cast<long long>(kSharedBytes) - static_cast<long long>(offset % kSlot), 0);
  auto after = blocks.upper_bound(offset);
  if (after == blocks.begin()) return "device memory before the first allocation";
  const auto& [begin, block] = *std::prev(after);
  const auto size = static_cast<long long>(block.nbytes);
  const auto into = static_cast<long long>(offset - begin);
  if (!block.is_live) return text("byte %lld of an allocation of %lld bytes that was freed (0x%llx)", into, size, number);
  if (into < size) return text("byte %lld of an allocation of %lld bytes (0x%llx)", into, size, number);
  if (after != blocks.end() && offset >= after->second.pages_begin)
    return text("%lld bytes before an allocation of %lld bytes (0x%llx)", static_cast<long long>(after->first - offset),
                static_cast<long long>(after->second.nbytes), number);
  return text("%lld bytes past the end of an allocation of %lld bytes (0x%llx)", into - size, size, number);
}

}  // namespace kpl_shim
