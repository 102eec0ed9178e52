// What a block has of its own: shared memory, its place in a cluster, copies under way.
#include <algorithm>
#include <cstring>

#include "memory.h"
#include "race.h"
#include "scheduler.h"

namespace kpl_shim {

unsigned char* shared_memory() { return running->block->shared; }
unsigned rank_in_cluster() { return running->block->slot - running->block->cluster; }
unsigned blocks_in_cluster() { return resident.cluster_size; }

void* shared_of(void* mine, unsigned rank) {
  const Block& block = *running->block;
  if (rank >= resident.cluster_size)
    fail("remote_shared: rank " + std::to_string(rank) + " in a cluster of " + std::to_string(resident.cluster_size) +
         "; " + who(*running));
  const auto offset = static_cast<unsigned char*>(mine) - block.shared;
  if (offset < 0 || static_cast<std::size_t>(offset) > block.shared_bytes)
    fail("remote_shared: the address is not in the shared memory of the block of " + who(*running) + ": " + describe(mine));
  const Block& other = resident.blocks[block.cluster + rank];
  if (other.alive == 0)
    fail("remote_shared: block " + std::to_string(other.index) + " has ended and its shared memory with it; " +
         who(*running) + " asks for it (a cluster_barrier at the end is missing)");
  return other.shared + offset;
}

void start_copy(void* shared, const void* global) {
  const auto to = reinterpret_cast<std::uintptr_t>(shared), from = reinterpret_cast<std::uintptr_t>(global);
  if (to % 16 != 0 || from % 16 != 0) fail("copy_async_16: an address is not a multiple of 16; " + who(*running));
  if (shared_slot(shared) != static_cast<int>(running->block->slot))
    fail("copy_async_16: the target is not in the block's shared memory: " + describe(shared) + "; " + who(*running));
  race_access(shared, 16, true, __builtin_return_address(0));
  running->copies.push_back({shared, global, running->group});
}

void close_copies() { ++running->group; }

void wait_copies(int groups_left) {
  Fiber& self = *running;
  auto& copies = self.copies;
  const auto is_due = [&](const Copy& copy) { return copy.group + static_cast<unsigned>(groups_left) < self.group; };
  for (const Copy& copy : copies) {
    if (!is_due(copy)) continue;
    race_access(copy.global, 16, false, __builtin_return_address(0));
    race_access(copy.shared, 16, true, __builtin_return_address(0));
    std::memcpy(copy.shared, copy.global, 16);
  }
  copies.erase(std::remove_if(copies.begin(), copies.end(), is_due), copies.end());
}

void fence() { race_fence(); }

void before_atomic(const void* address, std::size_t size) {
  // In any order but the plain one, others may come between this thread's last access and its atomic.
  if (pick(4) == 1) yield();
  race_atomic(address, size, __builtin_return_address(0));
}

void read_only_load(const void* address, std::size_t size) {
  race_read_only(address, size, __builtin_return_address(0));
}

}  // namespace kpl_shim
