#include "clocks.h"

#include <algorithm>
#include <memory>

namespace kpl_shim {

struct ThreadClock {
  std::uint32_t tick = 1;
  std::uint32_t fence_tick = 0, fence_epoch = 0;
  bool has_fenced = false;
  std::uint32_t seen[32] = {};               // ticks of the lanes of the warp that are known to be done
  std::unique_ptr<Knowledge> known, pending;  // through atomics; pending until the next fence
};

struct BlockClock {
  std::uint32_t epoch = 1;
  std::uint32_t fenced_epochs = 0;  // all threads fenced after them
  std::uint32_t num_fences = 0;     // in this epoch, at most one counted a thread
  bool has_news = false;            // a thread knows more than the block does
  Knowledge known;
  std::vector<ThreadClock> threads;
};

namespace {

std::unordered_map<std::uint32_t, BlockClock> clocks;  // of the resident blocks
std::unordered_map<const void*, Knowledge> published;

BlockClock& clock_of(const Block& block) { return *block.clock; }

ThreadClock& clock_of(const Fiber& fiber) { return clock_of(*fiber.block).threads[fiber.thread]; }

std::uint64_t name_of(std::uint32_t block, std::uint32_t thread) { return std::uint64_t{block} << 16 | thread; }

void add(std::unique_ptr<Knowledge>& to, const Knowledge& more) {
  if (!to) to = std::make_unique<Knowledge>();
  to->join(more);
}

void raise(std::uint32_t& value, std::uint32_t to) { value = std::max(value, to); }

void end_epoch(BlockClock& clock) {
  if (clock.num_fences == clock.threads.size()) clock.fenced_epochs = clock.epoch + 1;
  clock.num_fences = 0;
  ++clock.epoch;
  if (!clock.has_news) return;
  clock.has_news = false;
  for (ThreadClock& thread : clock.threads) {
    if (!thread.known) continue;
    clock.known.join(*thread.known);
    thread.known.reset();
  }
}

}  // namespace

void Knowledge::join(const Knowledge& other) {
  for (const auto& [block, epoch] : other.epochs) raise(epochs[block], epoch);
  for (const auto& [thread, tick] : other.threads) raise(threads[thread], tick);
}

bool Knowledge::covers(const Stamp& stamp) const {
  const auto block = epochs.find(stamp.block);
  if (block != epochs.end() && stamp.epoch < block->second) return true;
  const auto thread = threads.find(name_of(stamp.block, stamp.thread));
  return thread != threads.end() && stamp.tick <= thread->second;
}

void clocks_start_launch() {
  clocks.clear();
  published.clear();
}

void clocks_start_block(Block& block) {
  for (auto other = clocks.begin(); other != clocks.end();) {
    // The slot's earlier block has ended.
    const bool is_resident = std::any_of(resident.blocks.begin(), resident.blocks.end(),
                                         [&](const Block& now) { return now.index == other->first; });
    other = is_resident ? std::next(other) : clocks.erase(other);
  }
  block.clock = &clocks[block.index];
  block.clock->threads.resize(block.alive);
}

Stamp stamp_now(const void* code) {
  const BlockClock& clock = clock_of(*running->block);
  Stamp stamp;
  stamp.block = running->block->index;
  stamp.epoch = clock.epoch;
  stamp.tick = clock.threads[running->thread].tick;
  stamp.thread = static_cast<std::uint16_t>(running->thread);
  stamp.code = code;
  return stamp;
}

bool is_ordered(const Stamp& stamp) {
  const BlockClock& clock = clock_of(*running->block);
  const ThreadClock& mine = clock.threads[running->thread];
  if (stamp.block == running->block->index) {
    if (stamp.thread == running->thread || stamp.epoch < clock.epoch) return true;
    if (stamp.thread / 32 == running->thread / 32 && stamp.tick <= mine.seen[stamp.thread % 32]) return true;
  }
  return clock.known.covers(stamp) || (mine.known && mine.known->covers(stamp));
}

bool knows_block(unsigned block) {
  const Knowledge& known = clock_of(*running->block).known;
  return block == running->block->index || known.epochs.count(block) != 0;
}

void clocks_fence() {
  BlockClock& clock = clock_of(*running->block);
  ThreadClock& mine = clock.threads[running->thread];
  if (!mine.has_fenced || mine.fence_epoch != clock.epoch) ++clock.num_fences;
  mine.has_fenced = true;
  mine.fence_epoch = clock.epoch;
  mine.fence_tick = mine.tick++;
  if (mine.pending) {
    add(mine.known, *mine.pending);
    mine.pending.reset();
    clock.has_news = true;
  }
}

void clocks_atomic(const void* address) {
  BlockClock& clock = clock_of(*running->block);
  ThreadClock& mine = clock.threads[running->thread];
  const auto found = published.find(address);
  if (found != published.end()) add(mine.pending, found->second);
  if (!mine.has_fenced && clock.fenced_epochs == 0) return;
  Knowledge& here = published[address];
  here.join(clock.known);
  if (mine.known) here.join(*mine.known);
  raise(here.epochs[running->block->index], std::max(mine.fence_epoch, clock.fenced_epochs));
  if (!mine.has_fenced) return;
  raise(here.threads[name_of(running->block->index, running->thread)], mine.fence_tick);
  for (unsigned lane = 0; lane < 32; ++lane)
    if (mine.seen[lane] != 0)
      raise(here.threads[name_of(running->block->index, running->thread / 32 * 32 + lane)], mine.seen[lane]);
}

void clocks_block_barrier(const Block& block) { end_epoch(clock_of(block)); }

void clocks_group_barrier(const std::vector<Block*>& blocks) {
  Knowledge all;
  for (const Block* block : blocks) {
    BlockClock& clock = clock_of(*block);
    end_epoch(clock);
    all.join(clock.known);
    all.epochs[block->index] = clock.epoch;
  }
  for (const Block* block : blocks) clock_of(*block).known = all;
}

void clocks_warp_barrier(const Warp& warp, unsigned lanes) {
  std::uint32_t seen[32] = {};
  for (unsigned left = lanes; left != 0; left &= left - 1) {
    const int lane = __builtin_ctz(left);
    const ThreadClock& clock = clock_of(*warp.lanes[lane]);
    for (int i = 0; i < 32; ++i) raise(seen[i], clock.seen[i]);
    raise(seen[lane], clock.tick);
  }
  for (unsigned left = lanes; left != 0; left &= left - 1) {
    ThreadClock& clock = clock_of(*warp.lanes[__builtin_ctz(left)]);
    std::copy(seen, seen + 32, clock.seen);
    ++clock.tick;
  }
}

}  // namespace kpl_shim
