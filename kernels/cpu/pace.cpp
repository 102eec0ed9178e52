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
constexpr int64_t kMost = 1000000000;  // steps of one burst at the most
constexpr double kAskedEvery = 0.05;   // seconds
constexpr double kPenance = 8.0;       // time alone after a try that failed, in units of what the try lost

}  // namespace

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// A burst ends in time for the next question whether to stop.
int64_t Pace::at_most(int64_t steps) const {
    const double fits = alone_ > 0 ? kAskedEvery / alone_ : double(kTry);
    return std::max<int64_t>(1, std::min(steps, fits < 1e9 ? int64_t(fits) : int64_t(1e9)));
}

Burst Pace::choose(int64_t steps, double seconds, bool given_up) const {
    const unsigned number = burst_.number;
    if (burst_.active == 0) return {1, kTry, 0.0, number};
    if (count_ == 1) return {1, at_most(kMost), 0.0, number};
    if (burst_.active == 1 && burst_.steps >= left_) return {count_, at_most(kTry), kTooLong * alone_, number + 1};
    if (burst_.active == 1) return {1, at_most(left_ - burst_.steps), 0.0, number};
    const double step = seconds / double(std::max<int64_t>(steps, 1));
    if (given_up || step > kWorthIt * alone_) return {1, at_most(left_), 0.0, number};
    return {count_, at_most(kKeep), kTooLong * alone_, number + 1};
}

Burst Pace::next(int64_t steps, bool given_up) {
    const double time = clock_(), seconds = time - started_;
    if (stop_ && (asked_ == 0.0 || time - asked_ >= kAskedEvery)) {
        asked_ = time;
        if (stop_()) return {0, 0, 0.0, 0};
    }
    if (burst_.active == 1 && steps > 0) alone_ = seconds / double(steps);
    if (burst_.active > 1)  // steps alone before the next try together
        left_ = kKeep + int64_t(std::min(kPenance * std::max(seconds / alone_ - double(steps), 0.0), 1e9));
    const Burst burst = choose(steps, seconds, given_up);
    if (burst_.active == 1 && burst.active == 1) left_ -= burst_.steps;
    started_ = clock_();
    {
        const std::lock_guard<std::mutex> guard(lock_);
        burst_ = burst;
    }
    if (burst.active > 1) told_.notify_all();
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
