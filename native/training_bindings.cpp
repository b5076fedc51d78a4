// What training and the two-step solver call: passes of quantizers, and coordinate descent.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "arrays.hpp"
#include "descent.hpp"
#include "step.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace bitbranch {
namespace {

using Doubles = nb::ndarray<double, nb::c_contig, nb::device::cpu>;

template <class T>
int64_t run_descent(Machine& machine, Array<T> gram, Array<double> sum, Array<double> mean, Array<double> curvature,
                    Array<double> cross, Array<double> total, double unit, Array<double> scale, double top, double step,
                    Doubles weight, Doubles product, MaybeArray<int32_t> partner,
                    MaybeArray<double> covariance) {
  const size_t n = sum.size(), outputs = scale.size();
  if (gram.size() != n * n || mean.size() != n || curvature.size() != n || total.size() != outputs ||
      cross.size() != n * outputs || weight.size() != n * outputs || product.size() != n * outputs ||
      partner.has_value() != covariance.has_value() ||
      (partner && (partner->size() != n * kPartners || covariance->size() != n * kPartners)))
    throw std::invalid_argument("coordinate descent: the arrays do not fit each other");
  const Descent<T> layer{static_cast<int64_t>(n), static_cast<int64_t>(outputs), gram.data(), sum.data(), mean.data(),
                         curvature.data(), cross.data(), total.data(), unit, scale.data(), top, step, weight.data(),
                         product.data()};
  if (partner && std::any_of(partner->data(), partner->data() + partner->size(),
                             [n](int32_t p) { return p < 0 || static_cast<size_t>(p) >= n; }))
    throw std::invalid_argument("coordinate descent: a partner that is no input");
  const nb::gil_scoped_release unlocked;
  if (partner) return descend_pairs(*machine.isa, machine.pool, layer, partner->data(), covariance->data());
  return descend(*machine.isa, machine.pool, layer);
}

template <class T>
void bind_descent(nb::module_& m) {
  m.def("descend", run_descent<T>, "machine"_a, nb::kw_only(), "gram"_a.noconvert(), "sum"_a.noconvert(),
        "mean"_a.noconvert(), "curvature"_a.noconvert(), "cross"_a.noconvert(), "total"_a.noconvert(), "unit"_a,
        "scale"_a.noconvert(), "top"_a, "step"_a, "weight"_a.noconvert(), "product"_a.noconvert(),
        "partner"_a.noconvert() = nb::none(), "covariance"_a.noconvert() = nb::none(),
        "One cycle of coordinate descent, in place, over weights or, with partners, over pairs; how often it changed.");
}

// bfloat16 arrays come as their bits: NumPy has no such type.
template <class T>
struct Stored {
  using Bits = T;
};
template <>
struct Stored<Brain> {
  using Bits = int16_t;
};
template <class Real>
using Reals = nb::ndarray<const typename Stored<Real>::Bits, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class Real>
using OutReals = nb::ndarray<typename Stored<Real>::Bits, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <class Real>
const Real* reals(const Reals<Real>& array, size_t count) {
  if (array.size() != count) throw std::invalid_argument("training: the arrays do not fit each other");
  return reinterpret_cast<const Real*>(array.data());
}
template <class Real>
Real* reals(const OutReals<Real>& array, size_t count) {
  if (array.size() != count) throw std::invalid_argument("training: the arrays do not fit each other");
  return reinterpret_cast<Real*>(array.data());
}

Grid grid_of(const std::string& kind, float lo, float hi, float step) {
  constexpr const char* names[] = {"uniform", "sparse", "bipolar", "affine"};
  for (const Grid::Kind k : {Grid::uniform, Grid::sparse, Grid::bipolar, Grid::affine})
    if (kind == names[k]) return {k, lo, hi, step};
  throw std::invalid_argument("training: no grid '" + kind + "'");
}

template <class Real, class Wide, class Half>
auto of_type(Wide wide, Half half) {
  if constexpr (std::is_same_v<Real, float>) return wide;
  else return half;
}

// On the calling thread: torch's own threads, which wait at full speed for its next operation, would be in the way.
template <class Real>
void bind_passes(nb::module_& m) {
  m.def(
      "levels",
      [](const Machine& machine, const std::string& kind, float lo, float hi, float step, Reals<Real> x,
         OutReals<Real> out) {
        const size_t n = x.size();
        const auto run = of_type<Real>(machine.isa->levels32, machine.isa->levels16);
        const Grid grid = grid_of(kind, lo, hi, step);
        const Real* const from = reals<Real>(x, n);
        Real* const to = reals<Real>(out, n);
        const nb::gil_scoped_release unlocked;
        run(grid, from, to, static_cast<int64_t>(n));
      },
      "machine"_a, "kind"_a, "lo"_a, "hi"_a, "step"_a, "x"_a.noconvert(), "out"_a.noconvert(),
      "The levels of a training grid, float32 or the bits of bfloat16.");
  m.def(
      "window",
      [](const Machine& machine, float lo, float hi, Reals<Real> x, Reals<Real> gradient, OutReals<Real> out) {
        const size_t n = x.size();
        const auto run = of_type<Real>(machine.isa->window32, machine.isa->window16);
        const Real *const from = reals<Real>(x, n), *const given = reals<Real>(gradient, n);
        Real* const to = reals<Real>(out, n);
        const nb::gil_scoped_release unlocked;
        run(lo, hi, from, given, to, static_cast<int64_t>(n));
      },
      "machine"_a, "lo"_a, "hi"_a, "x"_a.noconvert(), "gradient"_a.noconvert(), "out"_a.noconvert(),
      "The gradient where lo < x < hi, else 0.");
  m.def(
      "step_gradient",
      [](const Machine& machine, float lo, float hi, float step, Reals<Real> x, Reals<Real> gradient,
         OutReals<Real> out) {
        const size_t n = x.size();
        const auto run = of_type<Real>(machine.isa->step_gradient32, machine.isa->step_gradient16);
        const Real *const from = reals<Real>(x, n), *const given = reals<Real>(gradient, n);
        Real* const to = reals<Real>(out, n);
        const nb::gil_scoped_release unlocked;
        return run({Grid::uniform, lo, hi, step}, from, given, to, static_cast<int64_t>(n));
      },
      "machine"_a, "lo"_a, "hi"_a, "step"_a, "x"_a.noconvert(), "gradient"_a.noconvert(), "out"_a.noconvert(),
      "The gradient where lo < x / step < hi, else 0; returns that to the step.");
  m.def(
      "extremes",
      [](const Machine& machine, Reals<Real> x) {
        constexpr float most = std::numeric_limits<float>::infinity();
        float ends[2] = {most, -most};
        const auto run = of_type<Real>(machine.isa->extremes32, machine.isa->extremes16);
        const Real* const from = reals<Real>(x, x.size());
        const nb::gil_scoped_release unlocked;
        run(from, static_cast<int64_t>(x.size()), ends);
        return std::pair(ends[0], ends[1]);
      },
      "machine"_a, "x"_a.noconvert(), "The least and the greatest number.");
}

}  // namespace

void bind_training(nb::module_& m) {
  bind_descent<int32_t>(m);
  bind_descent<double>(m);
  bind_passes<float>(m);
  bind_passes<Brain>(m);
}

}  // namespace bitbranch
