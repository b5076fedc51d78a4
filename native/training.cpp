#include "training.hpp"

#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

namespace bitbranch {

namespace {
constexpr int64_t kGrain = 1 << 15;  // elements that are worth waking a thread
constexpr int64_t kPart = 1 << 14;   // elements whose sum is one summand, wherever threads begin

template <class Real, class Wide, class Half>
auto of_type(Wide wide, Half half) {
  if constexpr (std::is_same_v<Real, float>) return wide;
  else return half;
}
}  // namespace

template <class Real>
void run_levels(const InstructionSet& isa, ThreadPool& pool, const Grid& grid, const Real* x, Real* y, int64_t count) {
  const auto levels = of_type<Real>(isa.levels32, isa.levels16);
  pool.parallel(count, kGrain, [&](int, int64_t begin, int64_t end) { levels(grid, x + begin, y + begin, end - begin); });
}

template <class Real>
void run_window(const InstructionSet& isa, ThreadPool& pool, float lo, float hi, const Real* x, const Real* gradient,
                Real* out, int64_t count) {
  const auto window = of_type<Real>(isa.window32, isa.window16);
  pool.parallel(count, kGrain, [&](int, int64_t begin, int64_t end) {
    window(lo, hi, x + begin, gradient + begin, out + begin, end - begin);
  });
}

template <class Real>
double run_step_gradient(const InstructionSet& isa, ThreadPool& pool, const Grid& grid, const Real* x,
                         const Real* gradient, Real* out, int64_t count) {
  const auto step_gradient = of_type<Real>(isa.step_gradient32, isa.step_gradient16);
  std::vector<double> sums(static_cast<size_t>((count + kPart - 1) / kPart));
  pool.parallel(static_cast<int64_t>(sums.size()), kGrain / kPart, [&](int, int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const int64_t at = part * kPart;
      sums[part] = step_gradient(grid, x + at, gradient + at, out + at, std::min(kPart, count - at));
    }
  });
  double sum = 0;
  for (const double part : sums) sum += part;
  return sum;
}

template <class Real>
Extremes run_extremes(const InstructionSet& isa, ThreadPool& pool, const Real* x, int64_t count) {
  const auto extremes = of_type<Real>(isa.extremes32, isa.extremes16);
  constexpr float most = std::numeric_limits<float>::infinity();
  std::vector<Extremes> found(pool.threads(), {most, -most});
  pool.parallel(count, kGrain, [&](int part, int64_t begin, int64_t end) {
    float ends[2] = {most, -most};
    extremes(x + begin, end - begin, ends);
    found[part] = {ends[0], ends[1]};
  });
  for (const Extremes& part : found)
    found[0] = {std::min(found[0].least, part.least), std::max(found[0].most, part.most)};
  return found[0];
}

#define INSTANTIATE(Real)                                                                                           \
  template void run_levels(const InstructionSet&, ThreadPool&, const Grid&, const Real*, Real*, int64_t);           \
  template void run_window(const InstructionSet&, ThreadPool&, float, float, const Real*, const Real*, Real*,       \
                           int64_t);                                                                                \
  template double run_step_gradient(const InstructionSet&, ThreadPool&, const Grid&, const Real*, const Real*,      \
                                    Real*, int64_t);                                                                \
  template Extremes run_extremes(const InstructionSet&, ThreadPool&, const Real*, int64_t);
INSTANTIATE(float)
INSTANTIATE(Brain)
#undef INSTANTIATE

}  // namespace bitbranch
