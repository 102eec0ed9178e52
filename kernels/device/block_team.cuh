// The blocks that solve one problem together: a team of one, or of several that meet at a counter of their own.
//
// How many of them work is a function of the problem's size alone, so a problem gives the same bits alone and among
// many, and in a graph of whatever capacity. A launch with teams of more than one block is cooperative.
#pragma once

#include "device/platform.cuh"
#include "device/problem.cuh"

namespace kpl {

constexpr int kMostBlocks = 128;  // of a team; a server GPU has 132 multiprocessors or more

struct BlockTeam {
    unsigned* counter;
    int rank, size;

    // Waits for the block or, with several, for all of them; see grid_barrier for what is visible after.
    __device__ void barrier() const {
        if (size > 1)
            grid_barrier(counter, unsigned(size));
        else
            __syncthreads();
    }

    // This block's share of `count` items is from start(count) up to end(count).
    __device__ long long start(long long count) const { return count * rank / size; }
    __device__ long long end(long long count) const { return count * (rank + 1) / size; }
};

// Blocks for `work` in units of what one block should do, beyond the first.
static __device__ __forceinline__ int block_team_size(long long work, int launched) {
    const long long wanted = work + 1 < kMostBlocks ? work + 1 : kMostBlocks;
    return wanted < launched ? int(wanted) : launched;
}

// Multiply-adds of X times `columns` columns, in units that take a block about 8 us on an H200.
static __device__ __forceinline__ long long product_work(long long n, long long d, long long columns) {
    return n * (d > 64 ? d : 64) * (columns > 4 ? columns : 4) >> 19;
}

// Calls solve(problem, team) for this block's problems. Blocks that a problem does not need pass it by.
template <typename Work, typename Solve>
static __device__ __forceinline__ void each_problem(const Problem* problems, int num_problems, int launched,
                                                    unsigned* counters, const Work& work, const Solve& solve) {
    const int teams = int(gridDim.x) / launched, rank = int(blockIdx.x) % launched;
    for (int p = int(blockIdx.x) / launched; p < num_problems; p += teams) {
        const BlockTeam team = {counters + (long long)(p)*kCounters, rank, block_team_size(work(problems[p]), launched)};
        if (rank < team.size) solve(problems[p], team);
        __syncthreads();  // shared memory is used anew
    }
}

}  // namespace kpl
