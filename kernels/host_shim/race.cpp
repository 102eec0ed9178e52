#include "race.h"

#include <sys/mman.h>

#include <cstdio>

#include "clocks.h"
#include "memory.h"

namespace kpl_shim {
namespace {

constexpr std::uint16_t kSeveralWarps = 0xffff;

/// Threads of one block that read one word in one epoch: lanes of one warp, or of several. No thread of the block is
/// ordered after readers in several warps before its next barrier, so who they were does not matter.
struct Readers {
  Stamp one;
  std::uint16_t warp;
  std::uint32_t ticks[32];  // 0: this lane has not read
};

/// The shadow of 4 bytes. Zero is "nothing is known, nothing may be touched".
struct alignas(64) Cell {
  std::uint32_t launch;  // the stamps are of this launch, or stale
  std::uint8_t allowed;  // bytes that are allocated, as bits
  std::uint8_t written, read;
  bool has_many;  // readers: see many[many_index]
  std::uint32_t many_index;
  Stamp write;
  Stamp reader;
};

Cell* shadow = nullptr;
bool is_checked = false;
std::uint32_t launch = 0;
std::vector<std::vector<Readers>> many;

Cell& cell_of(const void* address) {
  return shadow[static_cast<std::size_t>(static_cast<const char*>(address) - arena_begin()) / 4];
}

/// All of the arena is shadowed, in addresses; memory is used where something is touched.
void reserve_shadow() {
  const std::size_t nbytes = arena_bytes() / 4 * sizeof(Cell);
  void* memory = mmap(nullptr, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    std::perror("host shim: no addresses for the race check");
    std::abort();
  }
  shadow = static_cast<Cell*>(memory);
}

void allow(const void* begin, std::size_t nbytes, bool is_allowed) {
  const char* at = static_cast<const char*>(begin);
  for (std::size_t i = 0; i < nbytes; ++i) {
    Cell& cell = cell_of(at + i);
    const auto bit = static_cast<std::uint8_t>(1u << (reinterpret_cast<std::uintptr_t>(at + i) % 4));
    cell.allowed = static_cast<std::uint8_t>(is_allowed ? cell.allowed | bit : cell.allowed & ~bit);
    cell.launch = 0;
  }
}

std::string code_text(const void* code) {
  return " [pc " + std::to_string(reinterpret_cast<std::uintptr_t>(code) - 1) + "]";
}

std::string place_text(const void* address) {
  const int slot = shared_slot(address);
  if (slot < 0) return describe(address);
  const Block& block = resident.blocks[static_cast<std::size_t>(slot)];
  return "byte " + std::to_string(static_cast<const unsigned char*>(address) - block.shared) +
         " of the shared memory of block " + std::to_string(block.index);
}

[[noreturn]] void report_race(const void* address, const Stamp& now, bool is_write, const Stamp& before, bool was_write) {
  const auto side = [](const Stamp& stamp, bool writes) {
    return std::string(stamp.is_atomic ? "an atomic" : writes ? "a write" : "a read") + " by thread " +
           std::to_string(stamp.thread) + " of block " + std::to_string(stamp.block) + code_text(stamp.code);
  };
  fail("a race on " + place_text(address) + ": " + side(now, is_write) + "\n  and before it, with no barrier between, " +
       side(before, was_write) +
       "\n  (__syncthreads orders a block, __syncwarp a warp, shuffles and votes order nothing; between blocks: "
       "cluster_barrier, grid_barrier, or __threadfence, atomic, atomic, __threadfence)");
}

[[noreturn]] void report_bounds(const void* address, std::size_t size, bool is_write, const void* code) {
  fail(std::string(is_write ? "a write" : "a read") + " of " + std::to_string(size) + " bytes out of bounds: " +
       place_text(address) + ", by " + who(*running) + code_text(code));
}

void check_shared(const void* address, const void* code) {
  const int slot = shared_slot(address);
  if (slot < 0 || static_cast<unsigned>(slot) == running->block->slot) return;
  const auto index = static_cast<std::size_t>(slot);
  if (index >= resident.blocks.size() || resident.blocks[index].cluster != running->block->cluster)
    fail("shared memory of another cluster or block: " + describe(address) + ", by " + who(*running) + code_text(code));
  const Block& owner = resident.blocks[index];
  if (owner.alive == 0)
    fail("shared memory of block " + std::to_string(owner.index) + ", which has ended (a cluster_barrier at the end is " +
         "missing), by " + who(*running) + code_text(code));
  if (!knows_block(owner.index))
    fail("shared memory of block " + std::to_string(owner.index) + ", which may not have started (a cluster_barrier at " +
         "the beginning is missing), by " + who(*running) + code_text(code));
}

constexpr std::uint32_t kNoBlock = ~0u;

/// The oldest reader that the running thread does not know to be done; null if it knows them all, but for `except`.
const Stamp* unordered_reader(Cell& cell, std::uint32_t except = kNoBlock) {
  if (cell.read == 0) return nullptr;
  if (!cell.has_many) return cell.reader.block != except && !is_ordered(cell.reader) ? &cell.reader : nullptr;
  for (Readers& readers : many[cell.many_index]) {
    if (readers.one.block == except) continue;
    if (readers.warp == kSeveralWarps) {
      Stamp other = readers.one;
      // Another warp than the writer's has read too: only the end of the epoch orders that.
      if (other.block == running->block->index && other.thread / 32 == running->thread / 32) other.thread ^= 32;
      if (!is_ordered(other)) return &readers.one;
      continue;
    }
    for (std::uint16_t lane = 0; lane < 32; ++lane) {
      if (readers.ticks[lane] == 0) continue;
      readers.one.tick = readers.ticks[lane];
      readers.one.thread = static_cast<std::uint16_t>(readers.warp * 32 + lane);
      if (!is_ordered(readers.one)) return &readers.one;
    }
  }
  return nullptr;
}

Readers readers_of(const Stamp& stamp) {
  Readers readers{};
  readers.one = stamp;
  readers.warp = static_cast<std::uint16_t>(stamp.thread / 32);
  readers.ticks[stamp.thread % 32] = stamp.tick;
  return readers;
}

void note_among_many(Cell& cell, const Stamp& now) {
  auto& list = many[cell.many_index];
  for (std::size_t i = list.size(); i-- > 0;) {
    Readers& readers = list[i];
    if (readers.one.block != now.block) continue;
    if (readers.one.epoch != now.epoch) {
      readers = readers_of(now);
    } else if (readers.warp == now.thread / 32) {
      readers.ticks[now.thread % 32] = now.tick;
    } else {
      readers.warp = kSeveralWarps;
    }
    return;
  }
  list.push_back(readers_of(now));
}

void note_read(Cell& cell, const Stamp& now, std::uint8_t mask) {
  const bool is_first = cell.read == 0;
  cell.read |= mask;
  if (cell.has_many) {
    note_among_many(cell, now);
  } else if (is_first || is_ordered(cell.reader)) {
    cell.reader = now;  // who is ordered after this read is ordered after the one before too
  } else {
    cell.has_many = true;
    cell.many_index = static_cast<std::uint32_t>(many.size());
    many.push_back({readers_of(cell.reader)});
    note_among_many(cell, now);
  }
}

void touch(const char* address, std::uint8_t mask, bool is_write, const Stamp& now) {
  Cell& cell = cell_of(address);
  if (cell.launch != launch) {
    cell.launch = launch;
    cell.written = cell.read = 0;
    cell.has_many = false;
  }
  if ((cell.written & mask) != 0 && !(now.is_atomic && cell.write.is_atomic) && !is_ordered(cell.write))
    report_race(address, now, is_write, cell.write, true);
  if (!is_write) {
    note_read(cell, now, mask);
    return;
  }
  if ((cell.read & mask) != 0)
    if (const Stamp* reader = unordered_reader(cell)) report_race(address, now, true, *reader, false);
  cell.has_many = false;
  cell.read = 0;
  // Bytes of one word that different threads write: the word remembers the last of them only.
  // Bytes of an earlier writer must not pass for this one's, or its neighbours in the word would seem to race with it.
  const bool is_same_thread = cell.write.block == now.block && cell.write.thread == now.thread;
  cell.written = is_same_thread ? static_cast<std::uint8_t>(cell.written | mask) : mask;
  cell.write = now;
}

void access(const void* address, std::size_t size, bool is_write, bool is_atomic, const void* code) {
  if (!is_checked || running == nullptr || !in_arena(address)) return;
  check_shared(address, code);
  Stamp now = stamp_now(code);
  now.is_atomic = is_atomic;
  const char* at = static_cast<const char*>(address);
  const char* end = at + size;
  while (at < end) {
    const auto first = reinterpret_cast<std::uintptr_t>(at) % 4;
    const auto count = std::min<std::size_t>(4 - first, static_cast<std::size_t>(end - at));
    const auto mask = static_cast<std::uint8_t>(((1u << count) - 1u) << first);
    if ((cell_of(at).allowed & mask) != mask) report_bounds(at, size, is_write, code);
    touch(at, mask, is_write, now);
    at += count;
  }
}

}  // namespace

void race_allocate(void* begin, std::size_t nbytes) {
  if (shadow == nullptr) reserve_shadow();
  allow(begin, nbytes, true);
}

void race_release(void* begin, std::size_t nbytes) { allow(begin, nbytes, false); }

void race_start_launch(bool wanted) {
  is_checked = wanted;
  ++launch;
  many.clear();
  clocks_start_launch();
}

void race_start_block(Block& block) {
  if (!is_checked) return;
  if (shadow == nullptr) reserve_shadow();
  static std::vector<std::size_t> before(kMaxBlocks, 0);
  unsigned char* end = block.shared + (block.shared_bytes + 15) / 16 * 16;
  allow(end - before[block.slot], before[block.slot], false);
  allow(block.shared, block.shared_bytes, true);
  before[block.slot] = static_cast<std::size_t>(end - block.shared);
  clocks_start_block(block);
}

void race_end_block(const Block& block) {
  if (!is_checked || resident.cluster_size == 1) return;
  for (std::size_t offset = 0; offset + 4 <= block.shared_bytes; offset += 4) {
    Cell& cell = cell_of(block.shared + offset);
    if (cell.launch != launch) continue;
    const bool is_written = cell.written != 0 && cell.write.block != block.index && !is_ordered(cell.write);
    const Stamp* other = is_written ? &cell.write : unordered_reader(cell, block.index);
    if (other != nullptr)
      fail("block " + std::to_string(block.index) + " may end while thread " + std::to_string(other->thread) + " of block " +
           std::to_string(other->block) + " uses its shared memory" + code_text(other->code) +
           ": a cluster_barrier at the end is missing");
  }
}

void race_access(const void* address, std::size_t size, bool is_write, const void* code) {
  access(address, size, is_write, false, code);
}

void race_atomic(const void* address, std::size_t size, const void* code) {
  if (!is_checked) return;
  access(address, size, true, true, code);
  clocks_atomic(address);
}

void race_read_only(const void* address, std::size_t size, const void* code) {
  if (!is_checked || !in_arena(address)) return;
  const Cell& cell = cell_of(address);
  if (cell.launch == launch && cell.written != 0)
    fail("__ldg of memory that this launch has written, " + place_text(address) + ": the read-only cache may hold what "
         "was there before (use load_fresh); by " + who(*running) + code_text(code) + ", written" +
         code_text(cell.write.code));
  access(address, size, false, false, code);
}

void race_block_barrier(const Block& block) {
  if (is_checked) clocks_block_barrier(block);
}

void race_group_barrier(const std::vector<Block*>& blocks) {
  if (is_checked) clocks_group_barrier(blocks);
}

void race_warp_barrier(const Warp& warp, unsigned lanes) {
  if (is_checked) clocks_warp_barrier(warp, lanes);
}

void race_fence() {
  if (is_checked) clocks_fence();
}

}  // namespace kpl_shim
