#include "scheduler.h"

#include <algorithm>
#include <deque>
#include <map>

#include "barriers.h"
#include "faults.h"
#include "fiber.h"
#include "race.h"

namespace kpl_shim {

Index thread_index, block_index, block_dim, grid_dim;
Fiber* running = nullptr;
Resident resident;
std::uint64_t random_state = 0;

namespace {

/// The fibers that can run: first come, first served in order, or any of them.
class Ready {
 public:
  void clear(std::size_t capacity) {
    std::size_t size = 1;
    while (size < capacity + 1) size *= 2;
    ring_.assign(size, nullptr);
    first_ = count_ = 0;
  }
  bool empty() const { return count_ == 0; }
  void push(Fiber* fiber) { ring_[(first_ + count_++) & (ring_.size() - 1)] = fiber; }
  Fiber* pop() {
    if (random_state != 0) std::swap(at(0), at(pick(static_cast<unsigned>(count_))));
    Fiber* fiber = at(0);
    first_ = (first_ + 1) & (ring_.size() - 1);
    --count_;
    return fiber;
  }

 private:
  Fiber*& at(std::size_t i) { return ring_[(first_ + i) & (ring_.size() - 1)]; }
  std::vector<Fiber*> ring_;
  std::size_t first_ = 0, count_ = 0;
};

Ready ready;
void* main_stack = nullptr;
void* abandoned = nullptr;
std::string failure;
void (*kernel)(void**) = nullptr;
void** arguments = nullptr;
// Loops that wait for memory run for ever if nobody writes it: so many turns without any other progress are an error.
constexpr unsigned long kMaxIdleTurns = 500'000;
unsigned long idle_turns = 0;

void become(Fiber* fiber) {
  running = fiber;
  thread_index.x = fiber->thread;
  block_index.x = fiber->block->index;
}

/// Leaves the running fiber for the next one that can run, or for the caller of the launch.
void switch_away(void** from) {
  if (ready.empty()) {
    kpl_shim_switch(from, main_stack);
  } else {
    Fiber* next = ready.pop();
    if (&next->stack == from) {
      become(next);
      return;
    }
    become(next);
    kpl_shim_switch(from, next->stack);
  }
}

void fiber_main() {
  kernel(arguments);
  Fiber* self = running;
  self->wait = Wait::kEnded;
  idle_turns = 0;
  leave_barriers(*self);
  switch_away(&self->stack);
  __builtin_unreachable();
}

}  // namespace

unsigned pick(unsigned limit) {
  if (random_state == 0) return 0;
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return static_cast<unsigned>((random_state >> 32) * limit >> 32);
}

void suspend() {
  Fiber* self = running;
  switch_away(&self->stack);
}

void wake(Fiber* fiber) {
  fiber->wait = Wait::kNothing;
  idle_turns = 0;
  ready.push(fiber);
}

void yield() {
  if (++idle_turns > kMaxIdleTurns)
    fail("a loop waits for memory that nobody writes: " + who(*running) + " called kpl::pause() and all others wait or "
         "do the same\n" + waiting_report());
  ready.push(running);
  suspend();
}

std::string who(const Fiber& fiber) {
  return "thread " + std::to_string(fiber.thread) + " of block " + std::to_string(fiber.block->index);
}

std::string where(const Fiber& fiber) { return std::string(fiber.file) + ":" + std::to_string(fiber.line); }

void fail(const std::string& message) {
  if (failure.empty()) failure = message;
  kpl_shim_switch(&abandoned, main_stack);
  __builtin_unreachable();
}

std::string run_resident(void (*body)(void**), void** args) {
  kernel = body;
  arguments = args;
  failure.clear();
  idle_turns = 0;
  ready.clear(resident.fibers.size());
  std::size_t slot = 0;
  for (Fiber& fiber : resident.fibers) {
    fiber.stack = fresh_stack(slot++, fiber_main);
    ready.push(&fiber);
  }
  catch_faults();
  Fiber* first = ready.pop();
  become(first);
  kpl_shim_switch(&main_stack, first->stack);
  release_faults();
  running = nullptr;
  if (failure.empty()) failure = fault_message();
  if (!failure.empty()) return failure;
  const bool all_ended = std::all_of(resident.fibers.begin(), resident.fibers.end(),
                                     [](const Fiber& fiber) { return fiber.wait == Wait::kEnded; });
  return all_ended ? "" : "deadlock: no thread can go on\n" + waiting_report();
}

void abandon_to_main() { kpl_shim_switch(&abandoned, main_stack); }

std::string waiting_report() {
  static const char* const names[] = {"runs or can run",      "waits at __syncthreads",  "waits in its warp",
                                      "waits at cluster_barrier", "waits at grid_barrier", "has ended"};
  std::map<std::string, std::vector<const Fiber*>> groups;
  for (const Fiber& fiber : resident.fibers) {
    std::string key = "block " + std::to_string(fiber.block->index) + ": " + names[static_cast<int>(fiber.wait)];
    if (fiber.wait != Wait::kEnded && fiber.wait != Wait::kNothing) key += " at " + where(fiber);
    if (fiber.wait == Wait::kWarp) {
      char mask[40];
      std::snprintf(mask, sizeof mask, " with mask 0x%08x", fiber.warp->masks[fiber.lane]);
      key += mask;
    }
    groups[key].push_back(&fiber);
  }
  std::string report;
  for (const auto& [key, fibers] : groups) {
    report += "  " + key + ": " + std::to_string(fibers.size()) + " threads (";
    for (std::size_t i = 0; i < fibers.size() && i < 6; ++i)
      report += (i > 0 ? ", " : "") + std::to_string(fibers[i]->thread);
    report += fibers.size() > 6 ? ", ...)\n" : ")\n";
  }
  return report;
}

}  // namespace kpl_shim
