// exp of every instruction set, in both variants, against expl.
//
// An ulp of a result is the distance of two neighbouring doubles at the exact value. Bounds are measured, see kBound.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <vector>

#include "check.h"

namespace {

using check::expect;
using Real = long double;  // 64 bits of mantissa on x86-64, 113 on aarch64: either leaves expl's own error out of sight

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
// Measured over 4 million arguments a range: 1.084 ulp with fused multiply-add, 1.049 without it (baseline).
constexpr double kBound = 1.2;
// An emulated machine computes expl in software, 50 times slower.
constexpr int kSamples = LDBL_MANT_DIG > 64 ? 4000 : 200000;

std::vector<double> exp_of(const std::vector<double>& in, bool gradual) {
    std::vector<double> out(in.size(), kNan);
    kpl::kernels().exp(in.data(), out.data(), in.size(), gradual);
    return out;
}

// Distance of doubles at a positive value; that of the denormals below DBL_MIN.
Real ulp(Real value) {
    int exponent;
    std::frexp(value, &exponent);
    return std::ldexp(Real(1), std::max(exponent - 53, -1074));
}

// The largest error in ulp over [low, high), half of the samples uniform, half within a few ulps of the borders
// (k + 1/2) ln 2 where the reduced argument jumps from ln2/2 to -ln2/2.
double largest_error(double low, double high, bool gradual) {
    check::Random random(7);
    std::vector<double> in;
    for (int i = 0; i < kSamples; ++i) {
        double x = random.uniform(low, high);
        if (i % 2) {
            x = (std::floor(x / 0.6931471805599453) + 0.5) * 0.6931471805599453;
            x += double(int(random.bits() % 9) - 4) * std::fabs(x) * DBL_EPSILON / 2;
        }
        if (x >= low && x < high) in.push_back(x);
    }
    const std::vector<double> out = exp_of(in, gradual);
    Real worst = 0;
    double where = 0;
    for (size_t i = 0; i < in.size(); ++i) {
        const Real exact = std::exp(Real(in[i])), error = std::fabs(Real(out[i]) - exact) / ulp(exact);
        if (!(error <= worst)) worst = error, where = in[i];
    }
    std::printf("%s exp<%s> [%g, %g): %.3f ulp at %a\n", kpl::kernels().name, gradual ? "gradual" : "held", low, high,
                double(worst), where);
    return double(worst);
}

void accuracy() {
    for (const bool gradual : {false, true}) {
        for (const double reach : {1e-300, 1e-9, 0.3, 1.0, 20.0, 700.0}) {
            const double error = largest_error(-reach, reach, gradual);
            expect(error <= kBound, "exp up to %g: %g ulp", reach, error);
        }
        expect(largest_error(-708.0, -690.0, gradual) <= kBound, "exp near its smallest normal result");
        expect(largest_error(700.0, 709.0, gradual) <= kBound, "exp near its largest result");
    }
    expect(largest_error(709.0, 709.782712893383, true) <= kBound, "exp up to the last finite result");
}

// Denormal results: one rounding to their own grid on top of the error of a normal result, which there is below
// 1.2 / 2 of a denormal ulp. Hence within 1 ulp.
void gradual_underflow() {
    const double error = largest_error(-745.2, -708.4, true);
    expect(error <= 1.0, "gradual underflow: %g ulp of the denormal", error);
    const std::vector<double> in = {-745.13321910194110842, -745.13321910194122211, -746.0, -1e300, -kInf,
                                    -708.39641853226408};
    const std::vector<double> out = exp_of(in, true);
    expect(out[0] == 0x1p-1074, "e^-745.133 rounds to the least denormal, got %g", out[0]);
    for (size_t i = 1; i < 5; ++i) expect(out[i] == 0.0 && !std::signbit(out[i]), "e^%g: got %g", in[i], out[i]);
    expect(out[5] > 0.0, "the border of the normal numbers");
}

void edges() {
    const double denormal = std::numeric_limits<double>::denorm_min();
    for (const bool gradual : {false, true}) {
        for (const double one : exp_of({0.0, -0.0, denormal, -denormal, DBL_MIN, -DBL_MIN, 1e-17, -1e-17}, gradual))
            expect(one == 1.0, "e^0 and next to it: got %.17g", one);
        const std::vector<double> nans = exp_of({kNan, 1.0, -kNan, kNan, 2.0, kNan, kNan, 0.0, kNan}, gradual);
        for (const size_t i : {0, 2, 3, 5, 6, 8}) expect(std::isnan(nans[i]), "NaN at %zu became %g", i, nans[i]);
        expect(nans[7] == 1.0, "a NaN leaves its neighbours alone");
    }
    const std::vector<double> large = {709.7827128933840, 709.78271289338409, 710.0, 1e6, DBL_MAX, kInf};
    const std::vector<double> gradual = exp_of(large, true), held = exp_of(large, false);
    expect(std::isfinite(gradual[0]) && gradual[0] > 1.797693e308, "the last finite result: %g", gradual[0]);
    for (size_t i = 1; i < large.size(); ++i) expect(gradual[i] == kInf, "e^%.17g: %g", large[i], gradual[i]);
    const double top = exp_of({709.0}, false)[0], bottom = exp_of({-708.0}, false)[0];
    for (const double value : held) expect(value == top, "held at e^709: %g", value);
    for (const double value : exp_of({-708.0000000000001, -709.0, -746.0, -1e300, -DBL_MAX, -kInf}, false))
        expect(value == bottom && value > 0.0, "held at e^-708: %g", value);
}

// Every count of numbers, so that a rest shorter than a vector comes out right and nothing is written behind it.
void every_count() {
    check::Random random(3);
    for (size_t count = 0; count <= 19; ++count) {
        std::vector<double> in(count), out(count + 1, -7.0);
        for (double& x : in) x = random.uniform(-5.0, 5.0);
        kpl::kernels().exp(in.data(), out.data(), count, true);
        for (size_t i = 0; i < count; ++i)
            expect(out[i] == exp_of({in[i]}, true)[0], "count %zu: entry %zu depends on its lane", count, i);
        expect(out[count] == -7.0, "count %zu: written past the end", count);
    }
}

// Neighbouring arguments around the borders of the reduction and of the range: never a smaller result for a larger one.
void monotone() {
    std::vector<double> borders = {-745.13321910194122, -744.4400719213812, -708.39641853226408, 709.78271289338397};
    for (int k = -1020; k <= 1020; k += LDBL_MANT_DIG > 64 ? 40 : 1) borders.push_back((k + 0.5) * 0.6931471805599453);
    for (const bool gradual : {false, true})
        for (const double border : borders) {
            std::vector<double> in = {border};
            for (int i = 0; i < 16; ++i) in.insert(in.begin(), std::nextafter(in.front(), -kInf));
            for (int i = 0; i < 16; ++i) in.push_back(std::nextafter(in.back(), kInf));
            const std::vector<double> out = exp_of(in, gradual);
            for (size_t i = 1; i < out.size(); ++i)
                expect(out[i] >= out[i - 1], "exp<%d> falls from %a to %a at %a", gradual, out[i - 1], out[i], in[i]);
        }
}

}  // namespace

int main(int argc, char** argv) {
    return check::run(argc, argv, [] {
        accuracy();
        gradual_underflow();
        edges();
        every_count();
        monotone();
    });
}
