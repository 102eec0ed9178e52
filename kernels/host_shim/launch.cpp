// The door for ctypes: memory and launches.
#include <numeric>
#include <string>

#include "barriers.h"
#include "memory.h"
#include "race.h"
#include "scheduler.h"

namespace kpl_shim {
namespace {

struct Request {
  void (*invoke)(void**);
  void** args;
  unsigned grid, block, shared_bytes, cluster;
  unsigned is_cooperative, is_checked;
  std::uint64_t seed;
};

std::string last_error;

/// Blocks `first` and after in `order` take the slots of what is resident.
void seat(const Request& request, const std::vector<unsigned>& order, std::size_t first, std::size_t count) {
  resident.cluster_size = request.cluster;
  resident.blocks.resize(count);
  resident.fibers.resize(count * request.block);
  for (std::size_t s = 0; s < count; ++s) {
    Block& block = resident.blocks[s];
    block.index = order[first + s];
    block.slot = static_cast<unsigned>(s);
    block.cluster = static_cast<unsigned>(s / request.cluster * request.cluster);
    block.alive = request.block;
    block.shared_bytes = request.shared_bytes;
    block.shared = fresh_shared(s, request.shared_bytes);
    block.waiting.clear();
    block.warps.assign((request.block + 31) / 32, Warp{});
    for (unsigned t = 0; t < request.block; ++t) {
      Fiber& fiber = resident.fibers[s * request.block + t];
      Warp& warp = block.warps[t / 32];
      fiber.block = &block;
      fiber.warp = &warp;
      fiber.thread = t;
      fiber.lane = t % 32;
      fiber.wait = Wait::kNothing;
      fiber.copies.clear();
      fiber.group = 0;
      warp.alive |= 1u << fiber.lane;
      warp.lanes[fiber.lane] = &fiber;
    }
    race_start_block(block);
  }
}

/// Groups of blocks that must be resident together, in an order that depends on the seed.
std::vector<unsigned> order_of_blocks(const Request& request) {
  std::vector<unsigned> groups(request.grid / request.cluster);
  std::iota(groups.begin(), groups.end(), 0u);
  for (std::size_t i = groups.size(); i > 1; --i)
    if (random_state != 0) std::swap(groups[i - 1], groups[pick(static_cast<unsigned>(i))]);
  std::vector<unsigned> order;
  for (const unsigned group : groups)
    for (unsigned r = 0; r < request.cluster; ++r) order.push_back(group * request.cluster + r);
  return order;
}

std::string run(const Request& request) {
  random_state = request.seed == 0 ? 0 : request.seed * 0x9e3779b97f4a7c15u | 1;
  block_dim = {request.block, 1, 1};
  grid_dim = {request.grid, 1, 1};
  race_start_launch(request.is_checked != 0);
  reset_barriers();
  const std::vector<unsigned> order = order_of_blocks(request);
  const std::size_t together = request.is_cooperative != 0 ? request.grid : request.cluster;
  for (std::size_t first = 0; first < order.size(); first += together) {
    seat(request, order, first, together);
    const std::string error = run_resident(request.invoke, request.args);
    if (!error.empty()) return error;
  }
  return broken_guard();
}

}  // namespace
}  // namespace kpl_shim

extern "C" {

/// Null, or what went wrong; valid until the next launch.
const char* kpl_shim_launch(const kpl_shim::Request* request) {
  kpl_shim::last_error = kpl_shim::run(*request);
  return kpl_shim::last_error.empty() ? nullptr : kpl_shim::last_error.c_str();
}

std::uint64_t kpl_shim_allocate(std::uint64_t nbytes) { return kpl_shim::allocate(nbytes); }
int kpl_shim_release(std::uint64_t address) { return kpl_shim::release(address) ? 1 : 0; }
std::uint64_t kpl_shim_live_allocations() { return kpl_shim::live_allocations(); }

/// Whether [address, address + nbytes) lies within one live allocation; what a copy from the host must satisfy.
const char* kpl_shim_describe(std::uint64_t address) {
  kpl_shim::last_error = kpl_shim::describe(reinterpret_cast<void*>(address));
  return kpl_shim::last_error.c_str();
}

}  // extern "C"
