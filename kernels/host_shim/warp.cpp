// Collectives of a warp: the last lane to come computes for all, so no lane can run ahead over another one's value.
#include <cstring>

#include "memory.h"
#include "race.h"
#include "scheduler.h"

namespace kpl_shim {
namespace {

/// What a lane brings to a matrix product.
struct Fragments {
  void* d;
  const void* a;
  const void* b;
};

float bfloat16(unsigned pair, int half) {
  const unsigned raw = (half == 0 ? pair << 16 : pair & 0xffff0000u);
  float value;
  std::memcpy(&value, &raw, 4);
  return value;
}

float float16(unsigned pair, int half) {
  const auto raw = static_cast<unsigned short>(half == 0 ? pair : pair >> 16);
  _Float16 value;
  std::memcpy(&value, &raw, 2);
  return static_cast<float>(value);
}

const Fragments& fragments(const Warp& warp, unsigned lane) {
  return *reinterpret_cast<const Fragments*>(warp.lanes[lane]->value);
}

/// mma.sync.m16n8k16: which lane and register hold element (row, k) of a, (k, column) of b, (row, column) of d is in
/// the PTX manual, "Matrix Fragments for mma.m16n8k16 with floating point type".
template <typename Decode>
void run_halves(const Warp& warp, Decode decode) {
  float a[16][16], b[16][8];
  for (unsigned lane = 0; lane < 32; ++lane) {
    const auto* of_a = static_cast<const unsigned*>(fragments(warp, lane).a);
    const auto* of_b = static_cast<const unsigned*>(fragments(warp, lane).b);
    const unsigned g = lane / 4, t = lane % 4;
    for (int half = 0; half < 2; ++half) {
      for (unsigned r = 0; r < 4; ++r)
        a[g + 8 * (r % 2)][2 * t + static_cast<unsigned>(half) + 8 * (r / 2)] = decode(of_a[r], half);
      for (unsigned r = 0; r < 2; ++r) b[2 * t + static_cast<unsigned>(half) + 8 * r][g] = decode(of_b[r], half);
    }
  }
  for (unsigned lane = 0; lane < 32; ++lane) {
    auto* d = static_cast<float*>(fragments(warp, lane).d);
    for (unsigned r = 0; r < 4; ++r) {
      const unsigned row = lane / 4 + 8 * (r / 2), column = 2 * (lane % 4) + r % 2;
      float sum = d[r];
      for (unsigned k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
      d[r] = sum;
    }
  }
}

/// mma.sync.m8n8k4 in float64.
void run_f64(const Warp& warp) {
  double a[8][4], b[4][8];
  for (unsigned lane = 0; lane < 32; ++lane) {
    a[lane / 4][lane % 4] = *static_cast<const double*>(fragments(warp, lane).a);
    b[lane % 4][lane / 4] = *static_cast<const double*>(fragments(warp, lane).b);
  }
  for (unsigned lane = 0; lane < 32; ++lane) {
    auto* d = static_cast<double*>(fragments(warp, lane).d);
    for (unsigned r = 0; r < 2; ++r)
      for (unsigned k = 0; k < 4; ++k) d[r] = __builtin_fma(a[lane / 4][k], b[k][2 * (lane % 4) + r], d[r]);
  }
}

void run_shuffle(const Warp& warp, unsigned lanes) {
  std::uint64_t values[32];
  for (unsigned lane = 0; lane < 32; ++lane)
    values[lane] = lanes >> lane & 1 ? warp.lanes[lane]->value : (std::uint64_t{kPoison} << 32 | kPoison);
  for (unsigned left = lanes; left != 0; left &= left - 1) {
    Fiber& fiber = *warp.lanes[__builtin_ctz(left)];
    fiber.value = values[fiber.source];
  }
}

void run_ballot(const Warp& warp, unsigned lanes) {
  std::uint64_t bits = 0;
  for (unsigned left = lanes; left != 0; left &= left - 1) {
    const int lane = __builtin_ctz(left);
    bits |= warp.lanes[lane]->value << lane;
  }
  for (unsigned left = lanes; left != 0; left &= left - 1) warp.lanes[__builtin_ctz(left)]->value = bits;
}

void complete(Warp& warp, unsigned lanes, Collective kind) {
  if (kind == Collective::kShuffle) run_shuffle(warp, lanes);
  if (kind == Collective::kBallot) run_ballot(warp, lanes);
  if (kind == Collective::kBfloat16) run_halves(warp, bfloat16);
  if (kind == Collective::kFloat16) run_halves(warp, float16);
  if (kind == Collective::kFloat64) run_f64(warp);
  // Only __syncwarp orders memory; the CUDA guide denies it for shuffles and votes.
  if (kind == Collective::kSync) race_warp_barrier(warp, lanes);
  warp.waiting &= ~lanes;
  for (unsigned left = lanes; left != 0; left &= left - 1) {
    Fiber* fiber = warp.lanes[__builtin_ctz(left)];
    if (fiber != running || random_state != 0)
      wake(fiber);
    else
      fiber->wait = Wait::kNothing;
  }
}

void check_partners(const Warp& warp, const Fiber& self, unsigned mask, Collective kind) {
  if ((mask >> self.lane & 1) == 0)
    fail("warp collective at " + where(self) + ": " + who(self) + " is not in its own mask");
  for (unsigned left = warp.waiting; left != 0; left &= left - 1) {
    const int lane = __builtin_ctz(left);
    if ((warp.masks[lane] & mask) == 0 || (warp.masks[lane] == mask && warp.kinds[lane] == kind)) continue;
    fail("warp collective: " + who(self) + " came to " + where(self) + " while " + who(*warp.lanes[lane]) +
         " waits in another one, or with another mask, at " + where(*warp.lanes[lane]) + "\n" + waiting_report());
  }
}

std::uint64_t meet(unsigned mask, Collective kind, std::uint64_t value, int source, const char* file, int line) {
  Fiber& self = *running;
  Warp& warp = *self.warp;
  self.file = file;
  self.line = line;
  self.value = value;
  self.source = source;
  const int one = warp.waiting == 0 ? -1 : __builtin_ctz(warp.waiting);
  if (one < 0 || warp.masks[one] != mask || mask != 0xffffffffu || warp.kinds[one] != kind)
    check_partners(warp, self, mask, kind);
  self.wait = Wait::kWarp;
  warp.masks[self.lane] = mask;
  warp.kinds[self.lane] = kind;
  warp.waiting |= 1u << self.lane;
  const unsigned lanes = mask & warp.alive;
  if ((warp.waiting & lanes) == lanes) complete(warp, lanes, kind);
  if (self.wait != Wait::kNothing || random_state != 0) suspend();
  return self.value;
}

void multiply(Fragments& mine, Collective kind, const char* file, int line) {
  if (running->warp->alive != 0xffffffffu)
    fail("mma at " + std::string(file) + ":" + std::to_string(line) + " needs all 32 lanes of the warp of " + who(*running));
  meet(0xffffffffu, kind, reinterpret_cast<std::uint64_t>(&mine), 0, file, line);
}

}  // namespace

void sync_warp(unsigned mask, const char* file, int line) { meet(mask, Collective::kSync, 0, 0, file, line); }

std::uint64_t shuffle(unsigned mask, std::uint64_t value, int lane_source, const char* file, int line) {
  return meet(mask, Collective::kShuffle, value, lane_source, file, line);
}

unsigned ballot(unsigned mask, bool predicate, const char* file, int line) {
  return static_cast<unsigned>(meet(mask, Collective::kBallot, predicate ? 1 : 0, 0, file, line));
}

void multiply_bf16(float* d, const unsigned* a, const unsigned* b, const char* file, int line) {
  Fragments mine{d, a, b};
  multiply(mine, Collective::kBfloat16, file, line);
}

void multiply_f16(float* d, const unsigned* a, const unsigned* b, const char* file, int line) {
  Fragments mine{d, a, b};
  multiply(mine, Collective::kFloat16, file, line);
}

void multiply_f64(double* d, double a, double b, const char* file, int line) {
  Fragments mine{d, &a, &b};
  multiply(mine, Collective::kFloat64, file, line);
}

void leave_warp(Warp& warp) {
  for (unsigned left = warp.waiting; left != 0; left &= left - 1) {
    const int lane = __builtin_ctz(left);
    if ((warp.waiting >> lane & 1) == 0) continue;
    const unsigned lanes = warp.masks[lane] & warp.alive;
    if ((warp.waiting & lanes) == lanes) complete(warp, lanes, warp.kinds[lane]);
  }
}

}  // namespace kpl_shim
