#include <algorithm>

#include "refine.h"
#include "storage.h"
#include "threads.h"

namespace kpl {

namespace {

constexpr size_t kRows = 256;  // rows of one sum: their copy (768 KiB at d = 768) fits the L2 cache where one is needed

struct Rows {
    size_t n, d, ld, blocks;
    Matrix X;
    double longest;
    double* sums;  // (blocks, ld)
    float* copies;  // (members, kRows, d) where the columns of X are apart, else null
    int64_t* fits;  // (members, 8) one cache line each
};

// One block row by row.
void copy_block(const Rows& rows, size_t first, size_t count, float* copy) {
    const float* data = static_cast<const float*>(rows.X.data) + ptrdiff_t(first) * rows.X.row_stride;
    for (size_t k = 0; k < rows.d; ++k)
        for (size_t i = 0; i < count; ++i)
            copy[i * rows.d + k] = data[ptrdiff_t(i) * rows.X.row_stride + ptrdiff_t(k) * rows.X.column_stride];
}

void sum_blocks(const Rows& rows, const Member& member) {
    const Kernels& table = kernels();
    bool fits = true;
    for (size_t b = size_t(member.index); b < rows.blocks; b += size_t(member.count)) {
        const size_t first = b * kRows, count = std::min(kRows, rows.n - first);
        const float* block = static_cast<const float*>(rows.X.data) + ptrdiff_t(first) * rows.X.row_stride;
        ptrdiff_t stride = rows.X.row_stride;
        if (rows.copies) {
            float* copy = rows.copies + size_t(member.index) * kRows * rows.d;
            copy_block(rows, first, count, copy);
            block = copy;
            stride = ptrdiff_t(rows.d);
        }
        fits &= table.sum_rows(block, stride, count, rows.d, rows.longest * rows.longest, rows.sums + b * rows.ld);
    }
    rows.fits[member.index * 8] = fits;
}

// Sums of all blocks of X, in `storage`, which may hold more; whether all rows fit.
bool sum_rows(Rows& rows, Storage& storage, int threads) {
    rows.ld = round_up(rows.d, kernels().lanes);
    rows.blocks = (rows.n + kRows - 1) / kRows;
    const int members = int(std::min(size_t(threads), rows.blocks));
    const bool apart = rows.X.column_stride != 1 && rows.d > 1;
    const size_t sums = storage.add(rows.blocks, rows.ld), fits = storage.add(size_t(members), 8),
                 copies = storage.add(apart ? size_t(members) * kRows : 0, rows.d);
    storage.allocate();
    rows.sums = storage.at(sums);
    rows.fits = reinterpret_cast<int64_t*>(storage.at(fits));
    rows.copies = apart ? reinterpret_cast<float*>(storage.at(copies)) : nullptr;
    run_together(members, [&](const Member& member) { sum_blocks(rows, member); });
    bool all = true;
    for (int member = 0; member < members; ++member) all &= rows.fits[member * 8] != 0;
    return all;
}

// The sums of all blocks, in their order, over n; in the place of the first.
void mean_of_sums(const Rows& rows) {
    for (size_t b = 1; b < rows.blocks; ++b)
        for (size_t k = 0; k < rows.d; ++k) rows.sums[k] += rows.sums[b * rows.ld + k];
    for (size_t k = 0; k < rows.d; ++k) rows.sums[k] /= double(rows.n);
}

// Indices of the `kept` largest scores, best first, the lower index first among equals and NaN last.
void keep_best(const double* scores, size_t count, size_t kept, int64_t* order) {
    for (size_t i = 0; i < count; ++i) order[i] = int64_t(i);
    std::partial_sort(order, order + kept, order + count, [&](int64_t a, int64_t b) {
        const double x = scores[a], y = scores[b];
        if (x > y || x < y) return x > y;
        const bool x_is_nan = x != x, y_is_nan = y != y;
        return x_is_nan != y_is_nan ? y_is_nan : a < b;
    });
}

}  // namespace

bool select_text_proxies(const TextCall& call) {
    const Kernels& table = kernels();
    const size_t num_rows = size_t(call.offsets[call.c]);
    Rows rows = {call.n, call.d, 0, 0, call.X, call.longest, nullptr, nullptr, nullptr};
    Storage storage;
    const size_t order_at = storage.add(1, num_rows), column_at = storage.add(1, round_up(call.d, table.lanes));
    const bool fits = sum_rows(rows, storage, call.threads);
    int64_t* order = reinterpret_cast<int64_t*>(storage.at(order_at));
    double* column = storage.at(column_at);
    mean_of_sums(rows);
    table.score_rows(call.E, num_rows, call.d, rows.sums, call.scores);
    int64_t* kept = call.kept;
    for (size_t j = 0; j < call.c; ++j) {
        const size_t first = size_t(call.offsets[j]), count = size_t(call.offsets[j + 1]) - first;
        const size_t width = std::min(call.k, count);
        keep_best(call.scores + first, count, width, order);
        table.unit_mean(call.E + first * call.d, call.d, order, width, column);
        for (size_t k = 0; k < call.d; ++k) call.T[k * call.c + j] = float(column[k]);
        kept = std::copy(order, order + width, kept);
    }
    return fits;
}

bool rows_fit(const Matrix& X, size_t n, size_t d, double longest, int threads) {
    Rows rows = {n, d, 0, 0, X, longest, nullptr, nullptr, nullptr};
    Storage storage;
    return sum_rows(rows, storage, threads);
}

}  // namespace kpl
