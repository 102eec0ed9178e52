#include "barriers.h"

#include <cstring>
#include <map>

#include "race.h"
#include "scheduler.h"

namespace kpl_shim {
namespace {

/// Blocks that meet at one counter.
struct Team {
  unsigned num_blocks = 0;
  std::vector<Block*> arrived;
};

std::map<unsigned*, Team> teams;

bool is_complete(const Block& block, Wait kind) {
  return block.alive == 0 || (block.waiting.size() == block.alive && block.waiting[0]->wait == kind);
}

void release(Block& block) {
  // The one who arrived last goes on at once in the plain order, and takes its turn like the others in any other.
  for (Fiber* fiber : block.waiting)
    if (fiber != running || random_state != 0)
      wake(fiber);
    else
      fiber->wait = Wait::kNothing;
  block.waiting.clear();
}

/// Whether all blocks of the cluster have come.
bool release_cluster(Block& block) {
  std::vector<Block*> members;
  for (unsigned r = 0; r < resident.cluster_size; ++r) {
    Block& member = resident.blocks[block.cluster + r];
    if (!is_complete(member, Wait::kCluster)) return false;
    members.push_back(&member);
  }
  race_group_barrier(members);
  for (Block* member : members) release(*member);
  return true;
}

/// Joins two waits of the block's threads at one place, or fails.
void arrive(Wait kind, const char* file, int line) {
  Fiber& self = *running;
  Block& block = *self.block;
  self.wait = kind;
  self.file = file;
  self.line = line;
  if (!block.waiting.empty()) {
    const Fiber& first = *block.waiting[0];
    if (first.wait != kind || first.line != line || std::strcmp(first.file, file) != 0)
      fail("divergent barrier: " + who(first) + " waits at " + where(first) + ", " + who(self) + " at " + where(self) +
           "\n" + waiting_report());
  }
  block.waiting.push_back(&self);
}

/// Suspends unless the running fiber has been released and not queued.
void rest() {
  if (running->wait != Wait::kNothing || random_state != 0) suspend();
}

void join_team(unsigned* counter, unsigned num_blocks, Block& block) {
  Team& team = teams[counter];
  if (team.arrived.empty()) team.num_blocks = num_blocks;
  if (team.num_blocks != num_blocks)
    fail("grid_barrier: " + who(*running) + " waits for " + std::to_string(num_blocks) + " blocks, others at the same " +
         "counter for " + std::to_string(team.num_blocks));
  if (team.arrived.empty() && *counter % num_blocks != 0)
    fail("grid_barrier: the counter is " + std::to_string(*counter) + " and not a multiple of the " +
         std::to_string(num_blocks) + " blocks: it was not zeroed, or another team uses it");
  team.arrived.push_back(&block);
  if (team.arrived.size() < num_blocks) return;
  const std::vector<Block*> members = team.arrived;
  team.arrived.clear();
  *counter += num_blocks;
  race_group_barrier(members);
  for (Block* member : members) release(*member);
}

}  // namespace

void reset_barriers() { teams.clear(); }

void sync_threads(const char* file, int line) {
  arrive(Wait::kBlock, file, line);
  Block& block = *running->block;
  if (block.waiting.size() == block.alive) {
    race_block_barrier(block);
    release(block);
  }
  rest();
}

void sync_cluster(const char* file, int line) {
  arrive(Wait::kCluster, file, line);
  Block& block = *running->block;
  if (block.waiting.size() == block.alive) release_cluster(block);
  rest();
}

void sync_grid(unsigned* counter, unsigned num_blocks, const char* file, int line) {
  if (num_blocks == 0) fail("grid_barrier: no blocks; " + who(*running));
  arrive(Wait::kGrid, file, line);
  Block& block = *running->block;
  if (block.waiting.size() == block.alive) join_team(counter, num_blocks, block);
  rest();
}

void leave_barriers(Fiber& fiber) {
  Block& block = *fiber.block;
  --block.alive;
  fiber.warp->alive &= ~(1u << fiber.lane);
  if (block.alive == 0) {
    race_end_block(block);
    if (resident.cluster_size > 1) release_cluster(block);
    return;
  }
  if (block.waiting.size() == block.alive) {
    const Fiber& first = *block.waiting[0];
    if (first.wait == Wait::kGrid)
      fail("grid_barrier at " + where(first) + ": " + who(fiber) + " has ended; all threads of the block must come");
    if (first.wait == Wait::kCluster) release_cluster(block);
    if (first.wait == Wait::kBlock) {
      race_block_barrier(block);
      release(block);
    }
  }
  leave_warp(*fiber.warp);
}

}  // namespace kpl_shim
