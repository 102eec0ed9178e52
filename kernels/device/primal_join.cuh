// What both kernels of the primal form share. Equal classes at the end of a run: same start and same labels mean the
// same proxy, and rounding may have parted them (docs/method.md 3a).
#pragma once

#include "device/platform.cuh"
#include "device/problem.cuh"

namespace kpl {
namespace {

/// Whether classes i and j have the same text proxy and the same labels; asked by a warp.
__device__ __forceinline__ bool are_equal(const Problem& problem, long long i, long long j) {
    const long long lane = threadIdx.x % KPL_WARP;
    bool is_same = true;
    for (long long k = lane; k < problem.d; k += KPL_WARP)
        is_same &= __ldg(problem.T + i * problem.d + k) == __ldg(problem.T + j * problem.d + k);
    if (!__all_sync(KPL_FULL_MASK, is_same)) return false;
    for (long long row = lane; row < problem.n; row += KPL_WARP)
        is_same &= __ldg(problem.P + row * problem.c + i) == __ldg(problem.P + row * problem.c + j);
    return __all_sync(KPL_FULL_MASK, is_same);
}

/// W_j <- W_i for the first class i equal to j, by warp `warp` of `warps`. A class that is first keeps what it has, so
/// no column is read that another warp writes. W was written before a barrier.
__device__ __forceinline__ void join_equal_classes(const Problem& problem, long long warp, long long warps) {
    const long long lane = threadIdx.x % KPL_WARP;
    for (long long j = 1 + warp; j < problem.c; j += warps)
        for (long long first = 0; first < j; first += KPL_WARP) {
            // The first coordinate and the first label tell nearly all classes apart.
            const long long i = first + lane;
            const bool is_alike = i < j && __ldg(problem.T + i * problem.d) == __ldg(problem.T + j * problem.d) &&
                                  __ldg(problem.P + i) == __ldg(problem.P + j);
            long long found = -1;
            for (unsigned alike = __ballot_sync(KPL_FULL_MASK, is_alike); alike != 0 && found < 0; alike &= alike - 1) {
                const long long candidate = first + __ffs(static_cast<int>(alike)) - 1;
                if (are_equal(problem, candidate, j)) found = candidate;
            }
            if (found < 0) continue;
            for (long long k = lane; k < problem.d; k += KPL_WARP)
                problem.W[j * problem.d + k] = load_fresh(problem.W + found * problem.d + k);
            break;
        }
}

/// Whether this run is not asked for: `auto` takes the steps only where the closed form found itself at fault.
__device__ __forceinline__ bool is_answered(const Problem& problem, int only_if_fault) {
    return only_if_fault && problem.record->fault == 0 && problem.record->form == kClosedForm;
}

}  // namespace
}  // namespace kpl
