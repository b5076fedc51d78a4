#include "descent.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <type_traits>
#include <vector>

namespace bitbranch {

namespace {
template <class T>
void add(const InstructionSet& isa, T* sums, const T* panel, const WeightChange* changes, int64_t count) {
  if constexpr (std::is_same_v<T, double>) isa.add_changes_double(sums, panel, changes, count);
  else isa.add_changes32(sums, panel, changes, count);
}

// Some outputs of a layer. A panel is the columns of kPanel inputs: what they need to know of all changes fits the
// second cache, and is read as often as there are outputs.
template <class T>
class Outputs {
 public:
  Outputs(const InstructionSet& isa, const Descent<T>& layer, int64_t begin, int64_t end)
      : isa_(isa), layer_(layer), begin_(begin), end_(end), panel_(static_cast<size_t>(layer.inputs * kPanel)),
        changes_(static_cast<size_t>(end - begin)), sums_(static_cast<size_t>(end - begin)) {}

  int64_t run() {
    const Descent<T>& l = layer_;
    for (int64_t o = begin_; o < end_; ++o)
      for (int64_t i = 0; i < l.inputs; ++i) sums_[o - begin_] += l.sum[i] * l.weight[o * l.inputs + i];
    for (int64_t first = 0; first < l.inputs; first += kPanel) {
      load_panel(first, 0, std::min(first + kPanel, l.inputs));
      for (int64_t o = begin_; o < end_; ++o) visit(first, o);
    }
    int64_t changed = 0;
    for (const auto& c : changes_) changed += static_cast<int64_t>(c.size());
    if (!changed) return 0;
    for (int64_t first = 0; first < l.inputs; first += kPanel) {  // what came after a panel's turn
      load_panel(first, first + kPanel, l.inputs);
      for (int64_t o = begin_; o < end_; ++o) catch_up(first, o);
    }
    return changed;
  }

 private:
  // Columns first .. first + kPanel of the Gram matrix, which is symmetric, of the inputs from .. to.
  void load_panel(int64_t first, int64_t from, int64_t to) {
    const int64_t n = layer_.inputs, width = std::min<int64_t>(kPanel, n - first);
    for (int64_t i = from; i < to; ++i) std::copy_n(layer_.gram + i * n + first, width, &panel_[i * kPanel]);
  }

  void load(T* sums, const double* product, int64_t width) {
    for (int64_t r = 0; r < kPanel; ++r) sums[r] = r < width ? static_cast<T>(product[r]) : T{};
  }

  void visit(int64_t first, int64_t o) {
    const Descent<T>& l = layer_;
    const int64_t width = std::min<int64_t>(kPanel, l.inputs - first);
    double *const weight = l.weight + o * l.inputs + first, *const product = l.product + o * l.inputs + first;
    const double* const cross = l.cross + o * l.inputs + first;
    std::vector<WeightChange>& changes = changes_[o - begin_];
    double& sum = sums_[o - begin_];
    const double scale = l.scale[o], total = l.total[o];
    alignas(64) T sums[kPanel];
    load(sums, product, width);
    add(isa_, sums, panel_.data(), changes.data(), static_cast<int64_t>(changes.size()));
    for (int64_t r = 0; r < width; ++r) {
      const double mean = l.mean[first + r], curvature = scale * l.curvature[first + r];
      if (!(curvature > 0)) continue;
      const double wanted = (cross[r] - mean * total) * l.unit, got = static_cast<double>(sums[r]) - mean * sum;
      const double best = weight[r] + (wanted - scale * got) / curvature;
      const double level = std::nearbyint((best + l.top) / l.step) * l.step - l.top;
      const double value = std::min(std::max(level, -l.top), l.top), by = value - weight[r];
      if (by == 0) continue;
      weight[r] = value;
      sum += l.sum[first + r] * by;
      changes.push_back({static_cast<int32_t>(first + r), static_cast<int32_t>(by)});
      add(isa_, sums, panel_.data(), &changes.back(), 1);
    }
    std::copy_n(sums, width, product);
  }

  void catch_up(int64_t first, int64_t o) {
    const std::vector<WeightChange>& changes = changes_[o - begin_];
    const int64_t width = std::min<int64_t>(kPanel, layer_.inputs - first);
    const auto later = std::lower_bound(changes.begin(), changes.end(), first + kPanel,
                                        [](const WeightChange& c, int64_t input) { return c.weight < input; });
    if (later == changes.end()) return;
    double* const product = layer_.product + o * layer_.inputs + first;
    alignas(64) T sums[kPanel];
    load(sums, product, width);
    add(isa_, sums, panel_.data(), &*later, changes.end() - later);
    std::copy_n(sums, width, product);
  }

  const InstructionSet& isa_;
  const Descent<T>& layer_;
  const int64_t begin_, end_;
  std::vector<T> panel_;                            // [n][kPanel]
  std::vector<std::vector<WeightChange>> changes_;  // of each output, in the order of the inputs
  std::vector<double> sums_;                        // of the inputs times the weights, of each output
};
}  // namespace

template <class T>
int64_t descend(const InstructionSet& isa, ThreadPool& pool, const Descent<T>& layer) {
  std::atomic<int64_t> changed{0};
  pool.parallel(layer.outputs, 1, [&](int, int64_t begin, int64_t end) {
    changed += Outputs<T>(isa, layer, begin, end).run();
  });
  return changed;
}

template <class T>
int64_t descend_pairs(const InstructionSet& isa, ThreadPool& pool, const Descent<T>& layer, const int32_t* partner,
                      const double* covariance) {
  const int64_t n = layer.inputs;
  std::vector<double> inverse(n);
  for (int64_t i = 0; i < n; ++i) inverse[i] = layer.curvature[i] > 0 ? 1.0 / layer.curvature[i] : 0.0;
  const Pairs<T> shared{n,       layer.gram, layer.sum,  layer.mean, layer.curvature, inverse.data(),
                        partner, covariance, layer.top,  layer.step};
  std::atomic<int64_t> changed{0};
  pool.parallel(layer.outputs, 1, [&](int, int64_t begin, int64_t end) {
    std::vector<double> wanted(n), gradient(n);
    std::vector<T> sums(n);
    for (int64_t o = begin; o < end; ++o) {
      if (!(layer.scale[o] > 0)) continue;
      double *const weight = layer.weight + o * n, *const product = layer.product + o * n;
      double sum = 0;
      for (int64_t i = 0; i < n; ++i) {
        wanted[i] = (layer.cross[o * n + i] - layer.mean[i] * layer.total[o]) * layer.unit;
        sums[i] = static_cast<T>(product[i]);
        sum += layer.sum[i] * weight[i];
      }
      const PairsOutput<T> output{layer.scale[o], sum, wanted.data(), weight, sums.data(), gradient.data()};
      if constexpr (std::is_same_v<T, double>) changed += isa.improve_pairs_double(shared, output);
      else changed += isa.improve_pairs32(shared, output);
      std::copy(sums.begin(), sums.end(), product);
    }
  });
  return changed;
}

template int64_t descend(const InstructionSet&, ThreadPool&, const Descent<int32_t>&);
template int64_t descend(const InstructionSet&, ThreadPool&, const Descent<double>&);
template int64_t descend_pairs(const InstructionSet&, ThreadPool&, const Descent<int32_t>&, const int32_t*,
                               const double*);
template int64_t descend_pairs(const InstructionSet&, ThreadPool&, const Descent<double>&, const int32_t*,
                               const double*);

}  // namespace bitbranch
