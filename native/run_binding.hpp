// Running a plan from Python, for the bindings of both kinds of plans.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <vector>

#include "allocations.hpp"
#include "step.hpp"

namespace bitbranch {

using InputArray = nanobind::ndarray<nanobind::ro, nanobind::c_contig, nanobind::device::cpu>;
using OutputArray = nanobind::ndarray<float, nanobind::c_contig, nanobind::device::cpu>;
using SecondsArray = nanobind::ndarray<double, nanobind::c_contig, nanobind::device::cpu>;

// Whether a signal's handler has raised, as that of Ctrl-C does.
inline bool interrupted() {
  nanobind::gil_scoped_acquire locked;
  return PyErr_CheckSignals() != 0;
}

// Returns the number of an input that holds a NaN, at which the run ended, or -1.
inline int run_plan(Plan& plan, const std::vector<InputArray>& inputs, const std::vector<OutputArray>& outputs,
                     int begin, int end, std::optional<SecondsArray> seconds) {
  if (inputs.empty()) throw std::invalid_argument("a run needs an input");
  std::vector<Images> images;
  for (const InputArray& x : inputs) {
    const bool is_float = x.dtype() == nanobind::dtype<float>();
    if (!is_float && x.dtype() != nanobind::dtype<uint8_t>()) throw std::invalid_argument("input must be float32 or uint8");
    images.push_back({x.data(), is_float});
  }
  std::vector<float*> out;
  for (const OutputArray& y : outputs) out.push_back(y.data());
  const int count = static_cast<int>(inputs[0].shape(0));
  if (seconds && static_cast<int>(seconds->size()) < end) throw std::invalid_argument("seconds has fewer than `end` steps");
  double* const s = seconds ? seconds->data() : nullptr;
  Plan::End end_as;
  int bad = -1;
  {
    nanobind::gil_scoped_release unlocked;
    const CountAllocations counted;
    end_as = plan.run(begin, end, count, images.data(), out.data(), s, interrupted, bad);
  }
  if (end_as == Plan::End::interrupted) throw nanobind::python_error();
  return bad;
}

}  // namespace bitbranch
