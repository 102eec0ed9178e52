// Whether the threads of a run share its steps or one takes them alone, decided by the clock while it runs.
//
// Two threads halve a step on idle cores. On busy ones each meeting can cost a time slice of milliseconds, a thousand
// times the step. Steps are therefore taken in bursts, and the first member, who keeps the clock, chooses who takes
// the next one: it tries a short burst together, gives it up as soon as a step takes far longer than alone, and tries
// again after it has worked alone for eight times what the try lost. What a step computes does not depend on who takes it.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <utility>

#include "core.h"

namespace kpl {

class Pace {
public:
    // `stop` is asked about every 50 ms whether to give up the run.
    explicit Pace(int count, std::function<bool()> stop = nullptr, double (*clock)() = now)
        : count_(count), stop_(std::move(stop)), clock_(clock) {}

    // For the first member: the next burst, after `steps` steps were taken.
    Burst next(int64_t steps, bool given_up);
    // For the first member: no burst comes any more.
    void finish();
    // For the others: sleeps until a burst is to be taken together; none (active 0) when the run is over.
    Burst await(unsigned seen);

private:
    Burst choose(int64_t steps, double seconds, bool given_up) const;
    int64_t at_most(int64_t steps) const;

    const int count_;
    const std::function<bool()> stop_;
    double (*const clock_)();  // seconds
    double asked_ = 0.0;       // when `stop` was last asked
    Burst burst_ = {0, 0, 0.0, 0};
    double started_ = 0.0;
    double alone_ = 0.0;  // seconds of a step taken alone
    int64_t left_ = 0;    // steps alone, counted from the burst now taken, before the next try together
    bool over_ = false;
    std::mutex lock_;
    std::condition_variable told_;
};

}  // namespace kpl
