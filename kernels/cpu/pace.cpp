#include "pace.h"

#include <algorithm>
#include <chrono>
#include <limits>

namespace kpl {

namespace {

constexpr int64_t kTry = 8;            // steps of a first burst, alone or together
constexpr int64_t kKeep = 64;          // steps of a burst together that goes well, and the fewest alone after one that did not
constexpr double kTooLong = 4.0;       // a step together that takes this many times one alone ends the burst
constexpr double kWorthIt = 0.9;       // share of the time alone below which the others stay
constexpr double kPenance = 8.0;       // time alone after a try that failed, in units of what the try lost

}  // namespace

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

Burst Pace::choose(int64_t steps, double seconds, bool given_up) {
    if (count_ == 1) return {1, std::numeric_limits<int64_t>::max(), 0.0, 0};
    const unsigned number = burst_.number;
    if (burst_.active == 0) return {1, kTry, 0.0, number};
    const double step = seconds / double(std::max<int64_t>(steps, 1));
    if (burst_.active == 1) {
        alone_ = step;
        return {count_, kTry, kTooLong * alone_, number + 1};
    }
    if (given_up || step > kWorthIt * alone_) {
        const double lost = std::max(seconds / alone_ - double(steps), 0.0);  // in steps alone
        return {1, kKeep + int64_t(std::min(kPenance * lost, 1e9)), 0.0, number};
    }
    return {count_, kKeep, kTooLong * alone_, number + 1};
}

Burst Pace::next(int64_t steps, bool given_up) {
    const Burst burst = choose(steps, clock_() - started_, given_up);
    started_ = clock_();
    if (burst.active > 1) {
        {
            const std::lock_guard<std::mutex> guard(lock_);
            burst_ = burst;
        }
        told_.notify_all();
    } else {
        const std::lock_guard<std::mutex> guard(lock_);
        burst_ = burst;
    }
    return burst;
}

void Pace::finish() {
    {
        const std::lock_guard<std::mutex> guard(lock_);
        over_ = true;
    }
    told_.notify_all();
}

Burst Pace::await(unsigned seen) {
    std::unique_lock<std::mutex> guard(lock_);
    told_.wait(guard, [&] { return over_ || burst_.number != seen; });
    return over_ ? Burst{0, 0, 0.0, seen} : burst_;
}

Burst next_burst(Pace& pace, int64_t steps, bool given_up) { return pace.next(steps, given_up); }
Burst await_burst(Pace& pace, unsigned seen) { return pace.await(seen); }
void end_bursts(Pace& pace) { pace.finish(); }

}  // namespace kpl
