#include "threads.h"

#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace kpl {

namespace {

constexpr int kSpins = 400;  // about 10 us, what two members differ in a step; then a thread that waits for this core gets it

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace

void Barrier::wait() {
    const unsigned round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == count_) {
        arrived_.store(0, std::memory_order_relaxed);
        round_.store(round + 1, std::memory_order_release);
        return;
    }
    for (int spin = 0; round_.load(std::memory_order_acquire) == round; ++spin) {
        if (spin < kSpins)
            relax();
        else
            std::this_thread::yield();
    }
}

void wait(Barrier& barrier) { barrier.wait(); }

void run_together(int count, const std::function<void(const Member&)>& body) {
    if (count <= 1) {
        body(Member{0, 1, nullptr});
        return;
    }
    Barrier barrier(count);
    std::atomic<int> state{0};  // 0 wait, 1 go, 2 give up: not all threads could be had
    std::vector<std::thread> threads;
    const auto finish = [&](int verdict) {
        state.store(verdict, std::memory_order_release);
        for (std::thread& thread : threads) thread.join();
    };
    try {
        threads.reserve(static_cast<std::size_t>(count) - 1);
        for (int index = 1; index < count; ++index)
            threads.emplace_back([&, index] {
                int verdict = 0;
                while ((verdict = state.load(std::memory_order_acquire)) == 0) std::this_thread::yield();
                if (verdict == 1) body(Member{index, count, &barrier});
            });
    } catch (...) {
        finish(2);
        throw;
    }
    state.store(1, std::memory_order_release);
    body(Member{0, count, &barrier});
    finish(1);
}

void run_each(int count, std::size_t total, const std::function<void(std::size_t)>& body) {
    std::atomic<std::size_t> next{0};
    std::exception_ptr failure;
    std::mutex lock;
    const auto work = [&] {
        for (std::size_t index; (index = next.fetch_add(1)) < total;) {
            try {
                body(index);
            } catch (...) {
                const std::lock_guard<std::mutex> guard(lock);
                if (!failure) failure = std::current_exception();
            }
        }
    };
    std::vector<std::thread> threads;
    try {
        for (int index = 1; index < count && static_cast<std::size_t>(index) < total; ++index)
            threads.emplace_back(work);
    } catch (...) {  // fewer threads than asked for do the same work
    }
    work();
    for (std::thread& thread : threads) thread.join();
    if (failure) std::rethrow_exception(failure);
}

}  // namespace kpl
