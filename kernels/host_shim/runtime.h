// What a kernel compiled for the host asks of the shim: the calls that a GPU's hardware answers. Everything here lives
// in libkpl_shim and is never instrumented; the kernels may be (see race.h).
#pragma once

#include <cstddef>
#include <cstdint>

namespace kpl_shim {

struct Index {
  unsigned x, y, z;
};
// Of the running fiber; the scheduler rewrites them at each switch.
extern Index thread_index, block_index, block_dim, grid_dim;

void sync_threads(const char* file, int line);
void sync_warp(unsigned mask, const char* file, int line);
/// The `value` that `lane_source` gave; poison if that lane is not in `mask` or has ended.
std::uint64_t shuffle(unsigned mask, std::uint64_t value, int lane_source, const char* file, int line);
/// Bit l is set if lane l is in `mask` and its `predicate` holds.
unsigned ballot(unsigned mask, bool predicate, const char* file, int line);
void multiply_bf16(float* d, const unsigned* a, const unsigned* b, const char* file, int line);
void multiply_f16(float* d, const unsigned* a, const unsigned* b, const char* file, int line);
void multiply_f64(double* d, double a, double b, const char* file, int line);

void fence();
void before_atomic(const void* address, std::size_t size);
void read_only_load(const void* address, std::size_t size);

unsigned char* shared_memory();
unsigned rank_in_cluster();
unsigned blocks_in_cluster();
void* shared_of(void* mine, unsigned rank);
void sync_cluster(const char* file, int line);
void sync_grid(unsigned* counter, unsigned num_blocks, const char* file, int line);
void yield();

void start_copy(void* shared, const void* global);
void close_copies();
void wait_copies(int groups_left);

}  // namespace kpl_shim
