// Threads of a launch as fibers: who runs next, who waits for what, and what happens when nobody can run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "runtime.h"

namespace kpl_shim {

enum class Wait : unsigned char { kNothing, kBlock, kWarp, kCluster, kGrid, kEnded };
enum class Collective : unsigned char { kSync, kShuffle, kBallot, kBfloat16, kFloat16, kFloat64 };

struct Block;
struct BlockClock;
struct Warp;

/// One copy that has been started but must not be seen yet.
struct Copy {
  void* shared;
  const void* global;
  unsigned group;
};

struct Fiber {
  void* stack = nullptr;
  Block* block = nullptr;
  Warp* warp = nullptr;
  unsigned thread = 0;
  unsigned lane = 0;
  Wait wait = Wait::kNothing;
  const char* file = "";
  int line = 0;
  std::uint64_t value = 0;  // what a collective gets from this lane, then what the lane gets from it
  int source = 0;
  unsigned group = 0;  // of copies, the one being filled
  std::vector<Copy> copies;
};

/// The lanes that wait at a collective all have the same `mask` and `kind`, or the masks do not overlap.
struct Warp {
  unsigned alive = 0;
  unsigned waiting = 0;
  unsigned masks[32];
  Collective kinds[32];
  Fiber* lanes[32];
  unsigned index = 0;  // in the launch, for the race check
};

struct Block {
  unsigned index = 0;
  unsigned slot = 0;     // which shared memory
  unsigned cluster = 0;  // first slot of its cluster
  unsigned alive = 0;
  std::size_t shared_bytes = 0;
  unsigned char* shared = nullptr;
  std::vector<Fiber*> waiting;
  std::vector<Warp> warps;
  BlockClock* clock = nullptr;  // of a checked launch; see clocks.h
};

/// What is resident at once.
struct Resident {
  std::vector<Block> blocks;
  std::vector<Fiber> fibers;
  unsigned cluster_size = 1;
};

extern Fiber* running;
extern Resident resident;
extern std::uint64_t random_state;  // 0: everything in order

/// Runs another fiber; returns when this one is woken. `wait` must be set before.
void suspend();
void wake(Fiber* fiber);
/// A small random number, below `limit`; 0 when everything goes in order.
unsigned pick(unsigned limit);

/// Ends the launch with this message; the first one counts. Does not return.
[[noreturn]] void fail(const std::string& message);
std::string who(const Fiber& fiber);
std::string where(const Fiber& fiber);

/// Runs `body` for each thread of the resident blocks. Empty, or what went wrong.
std::string run_resident(void (*body)(void**), void** args);

/// A block's thread ended: barriers no longer wait for it.
void leave_barriers(Fiber& fiber);
/// The same for a collective of the warp.
void leave_warp(Warp& warp);
/// Every fiber that waits, by what it waits for.
std::string waiting_report();

}  // namespace kpl_shim
