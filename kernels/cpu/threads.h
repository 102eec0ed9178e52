// Threads that live for one call: nothing outlasts it, so a process may fork between calls.
#pragma once

#include <atomic>
#include <cstddef>
#include <functional>

#include "core.h"

namespace kpl {

// Lets `count` threads meet again and again. Waits by spinning first, for steps last microseconds; then it yields.
class Barrier {
public:
    explicit Barrier(int count) : count_(count) {}
    void wait();

private:
    const int count_;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<unsigned> round_{0};
};

// `body(member)` on `count` threads, the calling one among them. A thread that the system refuses is an exception
// before any body has begun.
void run_together(int count, const std::function<void(const Member&)>& body);

// `body(index)` for 0 <= index < total, dealt out to `count` threads as they come free. The first exception is thrown
// again after all threads have ended.
void run_each(int count, std::size_t total, const std::function<void(std::size_t)>& body);

}  // namespace kpl
