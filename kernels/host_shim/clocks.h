// What each thread knows to be done: vector clocks, kept small by what barriers make common.
//
// A block counts epochs: its barriers end one. A thread counts ticks: its __syncwarp and fences end one. Everything of
// an ended epoch of the own block is known to all its threads; what lanes of the own warp did is known up to the tick
// of the last common __syncwarp; what other blocks did is known through barriers of clusters and grids, and through
// __threadfence(), an atomic, the same atomic elsewhere, __threadfence() (the fences of the C++ memory model).
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "scheduler.h"

namespace kpl_shim {

/// Where and when one access was.
struct Stamp {
  std::uint32_t block = 0, epoch = 0, tick = 0;
  std::uint16_t thread = 0;
  bool is_atomic = false;
  const void* code = nullptr;
};

struct Knowledge {
  std::unordered_map<std::uint32_t, std::uint32_t> epochs;   // of a block: those below are done
  std::unordered_map<std::uint64_t, std::uint32_t> threads;  // of a thread: its ticks up to this one are done

  bool is_empty() const { return epochs.empty() && threads.empty(); }
  void join(const Knowledge& other);
  bool covers(const Stamp& stamp) const;
};

void clocks_start_launch();
void clocks_start_block(Block& block);

/// Of the running thread, now.
Stamp stamp_now(const void* code);
/// Whether the running thread knows that access to be done.
bool is_ordered(const Stamp& stamp);
/// Whether all threads of the running one's block know that `block` has started.
bool knows_block(unsigned block);

void clocks_fence();
void clocks_atomic(const void* address);
void clocks_block_barrier(const Block& block);
void clocks_group_barrier(const std::vector<Block*>& blocks);
void clocks_warp_barrier(const Warp& warp, unsigned lanes);

}  // namespace kpl_shim
