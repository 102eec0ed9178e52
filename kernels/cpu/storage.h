// One block of memory for a whole run, dealt out in aligned pieces before the work begins.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <new>
#include <utility>
#include <vector>

namespace kpl {

constexpr std::size_t kAlign = 64;  // a cache line, and the widest vector

inline std::size_t round_up(std::size_t count, std::size_t unit) { return (count + unit - 1) / unit * unit; }

// Pieces of doubles, all zero. Ask for each with `add`, then `allocate`, then read them back in the same order.
class Storage {
public:
    Storage() = default;
    Storage(const Storage&) = delete;
    Storage& operator=(const Storage&) = delete;
    ~Storage() { std::free(memory_); }

    // Reserve rows * columns doubles; returns where they will lie, for `at`.
    std::size_t add(std::size_t rows, std::size_t columns) {
        const std::size_t limit = std::numeric_limits<std::size_t>::max() / (4 * sizeof(double));
        if (columns != 0 && rows > limit / columns) throw std::bad_alloc();
        const std::size_t start = size_;
        size_ += round_up(rows * columns, kAlign / sizeof(double));
        if (size_ > limit) throw std::bad_alloc();
        return start;
    }

    // The same for a pointer that `allocate` sets.
    void place(double*& pointer, std::size_t rows, std::size_t columns) {
        placed_.emplace_back(&pointer, add(rows, columns));
    }

    // calloc, so that large pieces are pages of zeros that cost nothing until they are touched.
    void allocate() {
        memory_ = std::calloc(size_ * sizeof(double) + kAlign, 1);
        if (!memory_) throw std::bad_alloc();
        const auto address = reinterpret_cast<std::uintptr_t>(memory_);
        first_ = reinterpret_cast<double*>((address + kAlign - 1) / kAlign * kAlign);
        for (const auto& [pointer, start] : placed_) *pointer = at(start);
    }

    double* at(std::size_t start) const { return first_ + start; }

private:
    std::size_t size_ = 0;
    void* memory_ = nullptr;
    double* first_ = nullptr;
    std::vector<std::pair<double**, std::size_t>> placed_;
};

}  // namespace kpl
