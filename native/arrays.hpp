// Arrays of Python's, and how steps hold them.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <memory>
#include <optional>
#include <vector>

namespace bitbranch {

template <class T>
using Array = nanobind::ndarray<const T, nanobind::c_contig, nanobind::device::cpu>;
template <class T>
using MaybeArray = std::optional<Array<T>>;
using Keep = std::vector<std::shared_ptr<void>>;

template <class T>
auto* hold(Keep& keep, const T& array) {
  keep.push_back(std::make_shared<T>(array));
  return array.data();
}

template <class T>
const T* hold(Keep& keep, const MaybeArray<T>& array) {
  return array ? hold(keep, *array) : nullptr;
}

}  // namespace bitbranch
