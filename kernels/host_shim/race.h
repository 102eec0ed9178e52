// The race check: which accesses of different threads are ordered, and a shadow of memory that knows the last ones.
// Everything here returns at once unless the launch is checked.
#pragma once

#include <cstddef>
#include <vector>

namespace kpl_shim {

struct Block;
struct Warp;

void race_allocate(void* begin, std::size_t nbytes);
void race_release(void* begin, std::size_t nbytes);

void race_start_launch(bool is_checked);
void race_start_block(Block& block);

/// The last thread of a block ends, and its shared memory with it: as a write to all of that.
void race_end_block(const Block& block);

void race_access(const void* address, std::size_t size, bool is_write, const void* code);
void race_atomic(const void* address, std::size_t size, const void* code);
void race_read_only(const void* address, std::size_t size, const void* code);

void race_block_barrier(const Block& block);
void race_group_barrier(const std::vector<Block*>& blocks);
void race_warp_barrier(const Warp& warp, unsigned lanes);
void race_fence();

}  // namespace kpl_shim
