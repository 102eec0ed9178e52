// The work of the core whose instructions benchmarks/instructions counts: fixed inputs, one thread.
//
//   core_cases CASE ...   the named cases in turn, each between two calls of getppid()
//
// Valgrind writes its counts out at each call of getppid(), which nothing else here makes, so that inputs and start-up
// are not counted. Prints the instruction sets that this processor offers; exit status 1 for a case that did not do
// its work, for then its count says nothing.
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "check.h"
#include "closed_form.h"
#include "refine.h"
#include "schedule.h"

namespace {

constexpr size_t kClasses = 5;
constexpr double kTauT = 0.01, kTauI = 0.04, kLr = 10.0, kAlpha = 0.6, kMaxDrift = 1e4;

// Whether the work was done as expected.
using Work = std::function<bool()>;

// Unit rows (n, d) with a common direction, as features have, and one of their class.
std::vector<float> unit_rows(size_t n, size_t d, std::uint64_t seed) {
    check::Random random(seed);
    std::vector<float> X(n * d);
    for (size_t i = 0; i < n; ++i) {
        std::vector<double> x(d);
        double squared = 0.0;
        for (size_t k = 0; k < d; ++k) {
            x[k] = random.normal() + (k % 3 == 0 ? 1.5 : 0.0) + (k % kClasses == i % kClasses ? 0.5 : 0.0);
            squared += x[k] * x[k];
        }
        for (size_t k = 0; k < d; ++k) X[i * d + k] = float(x[k] / std::sqrt(squared));
    }
    return X;
}

// Labels (n, c) of mass 1, mostly those of `unit_rows`.
std::vector<double> some_labels(size_t n, std::uint64_t seed) {
    check::Random random(seed);
    std::vector<double> P(n * kClasses);
    for (size_t i = 0; i < n; ++i) {
        double* row = &P[i * kClasses];
        double total = 0.0;
        for (size_t j = 0; j < kClasses; ++j)
            total += row[j] = random.uniform(0.2, 1.0) + (i % kClasses == j ? 2.0 : 0.0);
        for (size_t j = 0; j < kClasses; ++j) row[j] /= total * double(n);
    }
    return P;
}

kpl::Matrix rows_of(const std::vector<float>& values, size_t width) {
    return {values.data(), ptrdiff_t(width), 1, true};
}

// The published steps, softmax labels included; no step is left out, so that the count follows from the shapes. The
// clock decides how many steps are taken between two questions whether to stop (pace.h), at 250 instructions each: steps
// are large enough that one question a step would be less than 0.1 % of the count.
Work schedule(void (*solve)(const kpl::Problem&, kpl::Outcome&), size_t n, size_t d, int64_t steps) {
    struct Data {
        std::vector<float> X, T;
        std::vector<double> W, Z;
    };
    const auto data = std::make_shared<Data>();
    data->X = unit_rows(n, d, 1);
    data->T.resize(d * kClasses);
    const std::vector<float> columns = unit_rows(kClasses, d, 2);
    for (size_t j = 0; j < kClasses; ++j)
        for (size_t k = 0; k < d; ++k) data->T[k * kClasses + j] = columns[j * d + k];
    data->W.resize(d * kClasses);
    data->Z.resize(n * kClasses);
    return [=] {
        const kpl::LabelChoice labels = {kpl::LabelMethod::softmax, kTauT, 0.0, 0, nullptr, kAlpha};
        const kpl::ScheduleOptions options = {kLr, kTauI, steps, kMaxDrift, false, 0.0};
        const kpl::Problem problem = {n,       d,      kClasses, rows_of(data->X, d), rows_of(data->T, kClasses),
                                      nullptr, labels, options,  1};
        kpl::Outcome outcome = {data->W.data(), data->Z.data(), {}, 0, 0, 0, 0};
        solve(problem, outcome);
        return outcome.result.iterations == steps;
    };
}

// Sums over images, the fixed point, and what a solution says of its images.
Work closed_form(size_t n, size_t d) {
    struct Data {
        std::vector<float> X, proxies, discriminants, logits, scores;
        std::vector<double> P, mean, XtP, W;
        std::vector<int64_t> labels;
        std::unique_ptr<bool[]> undecided;
    };
    const auto data = std::make_shared<Data>();
    data->X = unit_rows(n, d, 3);
    data->P = some_labels(n, 4);
    for (std::vector<float>* array : {&data->proxies, &data->discriminants}) array->resize(d * kClasses);
    for (std::vector<float>* array : {&data->logits, &data->scores}) array->resize(n * kClasses);
    data->mean.resize(d);
    for (std::vector<double>* array : {&data->XtP, &data->W}) array->resize(d * kClasses);
    data->labels.resize(n);
    data->undecided.reset(new bool[n]);
    return [=] {
        Data& at = *data;
        const kpl::Images images = {n, d, rows_of(at.X, d), 1};
        kpl::moments(images, at.P.data(), kClasses, at.mean.data(), at.XtP.data());
        const kpl::FixedPointResult found = kpl::fixed_point(
            {images, kClasses, at.P.data(), at.mean.data(), at.XtP.data(), kTauI, 1e-9, 5, at.W.data()});
        const bool fits = kpl::finish(images, kClasses, {at.W.data(), double(n), at.proxies.data(),
                                                         at.discriminants.data(), at.logits.data(), at.scores.data(),
                                                         at.labels.data(), at.undecided.get()});
        return fits && found.ending == kpl::Ending::kReached;
    };
}

Work labels(kpl::LabelMethod method, size_t n, int64_t iters) {
    const auto S = std::make_shared<std::vector<float>>(n * kClasses), P = std::make_shared<std::vector<float>>(*S);
    check::Random random(5);
    for (float& s : *S) s = float(0.25 + 0.02 * random.normal());
    return [=] {
        return kpl::refine_labels(
            {n, kClasses, rows_of(*S, kClasses), method, kTauT, 0.0, iters, nullptr, P->data(), true});
    };
}

Work text_proxies(size_t n, size_t d, size_t descriptions, size_t kept) {
    struct Data {
        std::vector<float> X, E, T;
        std::vector<int64_t> offsets, kept;
        std::vector<double> scores;
    };
    const auto data = std::make_shared<Data>();
    data->X = unit_rows(n, d, 6);
    data->E = unit_rows(descriptions * kClasses, d, 7);
    data->T.resize(d * kClasses);
    for (size_t j = 0; j <= kClasses; ++j) data->offsets.push_back(int64_t(j * descriptions));
    data->kept.resize(kept * kClasses);
    data->scores.resize(descriptions * kClasses);
    return [=] {
        Data& at = *data;
        return kpl::select_text_proxies({n, d, kClasses, rows_of(at.X, d), at.E.data(), at.offsets.data(), kept, 1.01,
                                         1, at.scores.data(), at.kept.data(), at.T.data()});
    };
}

// Queries of one image each: cosines with text proxies, scores, and the probabilities of both.
Work frozen_queries(size_t queries, size_t d) {
    struct Data {
        std::vector<float> X, text, discriminants;
        std::vector<double> product, powers;
    };
    const auto data = std::make_shared<Data>();
    data->X = unit_rows(queries, d, 8);
    data->text = unit_rows(d, kClasses, 9);
    data->discriminants = unit_rows(d, kClasses, 10);
    data->product.resize(kClasses);
    data->powers.resize(kClasses);
    return [=] {
        bool is_finite = true;
        for (size_t i = 0; i < queries; ++i)
            for (const std::vector<float>* columns : {&data->text, &data->discriminants}) {
                const kpl::Matrix query = {&data->X[i * d], ptrdiff_t(d), 1, true};
                kpl::multiply_rows(query, 1, d, rows_of(*columns, kClasses), kClasses, data->product.data());
                const kpl::Matrix scores = {data->product.data(), ptrdiff_t(kClasses), 1, false};
                is_finite &= kpl::refine_labels({1, kClasses, scores, kpl::LabelMethod::softmax, kTauI, 0.0, 0,
                                                 nullptr, data->powers.data(), false});
            }
        return is_finite;
    };
}

struct Case {
    const char* name;
    std::function<Work()> prepare;
};

const Case kCases[] = {
    {"schedule_dual", [] { return schedule(kpl::solve_dual, 320, 256, 80); }},
    {"schedule_primal", [] { return schedule(kpl::solve_primal, 400, 256, 60); }},
    {"closed_form_tall", [] { return closed_form(600, 160); }},
    {"closed_form_wide", [] { return closed_form(150, 512); }},
    {"labels_greenkhorn", [] { return labels(kpl::LabelMethod::stable_greenkhorn, 8001, 20); }},
    {"labels_sinkhorn", [] { return labels(kpl::LabelMethod::sinkhorn, 8001, 20); }},
    {"text_proxies", [] { return text_proxies(2048, 512, 60, 8); }},
    {"frozen_queries", [] { return frozen_queries(64, 512); }},
};

bool run(const char* name) {
    for (const Case& each : kCases) {
        if (std::strcmp(each.name, name) != 0) continue;
        const Work work = each.prepare();
        getppid();
        const bool is_done = work();
        getppid();
        if (!is_done) std::fprintf(stderr, "%s: did not end as it should; choose other inputs\n", name);
        return is_done;
    }
    std::fprintf(stderr, "%s: no such case\n", name);
    return false;
}

}  // namespace

int main(int argc, char** argv) {
    for (const char* const* name = kpl::kernel_names(); *name; ++name) std::printf("%s%s", *name, name[1] ? " " : "\n");
    for (int i = 1; i < argc; ++i)
        if (!run(argv[i])) return 1;
    return 0;
}
