// The dot-product path for Python: views into arrays that Python owns, and plans of steps over them.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../arrays.hpp"
#include "../buffer.hpp"
#include "../run_binding.hpp"
#include "steps.hpp"
#include "winograd.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace bitbranch {
namespace {

using bitbranch::hold;  // beside the one below
using Memory = std::shared_ptr<Buffer>;
using Pair = std::pair<int, int>;

uint8_t* hold(Keep& keep, const Memory& memory) {
  keep.push_back(memory);
  return memory->data();
}

struct HeldDotView : DotView {
  Keep keep;
};

struct HeldDotOp : DotOp {
  Keep keep;
};

HeldDotOp operation(DotOp::Kind kind, const HeldDotView* view) {
  HeldDotOp op{};
  op.kind = kind;
  if (view) {
    op.view = *view;
    op.keep = view->keep;
  }
  return op;
}

// Without its slope and intercept.
HeldDotOp line(DotOp::Kind kind, const HeldDotView& target, int last, int shift, int add,
               const MaybeArray<int32_t>& limits, int ranks) {
  HeldDotOp op = operation(kind, &target);
  op.count = last;
  op.code = {shift, add};
  op.limits = hold(op.keep, limits);
  op.ranks = ranks;
  return op;
}

class DotPlan {
 public:
  explicit DotPlan(std::shared_ptr<Machine> machine) : plan_(machine), machine_(std::move(machine)) {}
  const DotSet* set() const { return machine_->isa->dot; }
  const InstructionSet* isa() const { return machine_->isa; }

  DotView view(const HeldDotView& v) {
    keep_.insert(keep_.end(), v.keep.begin(), v.keep.end());
    return v;
  }

  template <class T>
  T& add(std::unique_ptr<T> step) {
    T& s = *step;
    plan_.add(std::move(step));
    return s;
  }

  // A step that ends in a chain.
  template <class T>
  T& add_chained(const DotWalk& walk, int channels, const std::vector<HeldDotOp>& chain) {
    T& s = add(std::make_unique<T>(set(), walk, channels));
    for (const HeldDotOp& op : chain) {
      keep_.insert(keep_.end(), op.keep.begin(), op.keep.end());
      s.chain.push_back(op);
    }
    return s;
  }

  Plan plan_;
  Keep keep_;

 private:
  std::shared_ptr<Machine> machine_;
};

// outputs: (first, channels, index of the list of chunks, bytes into weights) of each.
void add_convolution(DotPlan& p, const DotWalk& walk, int channels, const std::vector<HeldDotOp>& chain,
                     const HeldDotView& source, Pair stride, Array<int64_t> outputs,
                     const std::vector<std::pair<Array<int32_t>, Array<uint8_t>>>& lists, Array<int32_t> start,
                     Array<uint8_t> weights, int bits, MaybeArray<int8_t> tables, int narrow_quads, Memory scratch,
                     int scratch_chunks, int piece, MaybeArray<int32_t> reads, Memory gather_scratch, int slots) {
  DotConvolution& s = p.add_chained<DotConvolution>(walk, channels, chain);
  s.source = p.view(source);
  s.stride_y = stride.first;
  s.stride_x = stride.second;
  s.bits = bits;
  s.tables = hold(p.keep_, tables);
  s.narrow_quads = narrow_quads;
  s.scratch = reinterpret_cast<int8_t*>(hold(p.keep_, scratch));
  s.scratch_chunks = scratch_chunks;
  const uint8_t* const all = hold(p.keep_, weights);
  const int32_t* const starts = hold(p.keep_, start);
  std::vector<std::pair<const int32_t*, const uint8_t*>> held;
  for (const auto& [offsets, quads] : lists) held.emplace_back(hold(p.keep_, offsets), hold(p.keep_, quads));
  for (size_t i = 0; i < outputs.shape(0); ++i) {
    const int64_t* const o = outputs.data() + 4 * i;
    const size_t list = static_cast<size_t>(o[2]);
    const auto& [offsets, quads] = lists.at(list);
    s.outputs.push_back({static_cast<int>(o[0]), static_cast<int>(o[1]), static_cast<int>(quads.size()),
                         held[list].first, static_cast<int>(offsets.size()), held[list].second, all + o[3],
                         starts + 32 * i, static_cast<int>(list)});
  }
  s.lists = static_cast<int>(lists.size());
  if (piece == 0) return;
  s.piece = piece;
  s.gather_scratch = hold(p.keep_, gather_scratch);
  s.slots = slots;
  s.gathered_chunks = (s.outputs.at(0).pieces * piece + kDotDepth - 1) / kDotDepth;
  for (size_t c = 0; c < reads->size(); ++c) s.gathered_offsets.push_back(reads->data()[c] * kDotPixels * kDotDepth);
}

// outputs: as above; weights have no list of chunks, but those of nine taps.
void add_winograd(DotPlan& p, const DotWalk& walk, int channels, const std::vector<HeldDotOp>& chain,
                  const HeldDotView& source, int side, Pair top_left, Array<int64_t> outputs, Array<uint8_t> quads,
                  Array<uint8_t> add, Array<int32_t> start, Array<uint8_t> weights, int bits,
                  MaybeArray<int8_t> tables, int narrow_quads, bool half, int group, bool together, Memory scratch, int threads) {
  if ((side != 2 && side != 3) || add.size() != static_cast<size_t>((side + 2) * (side + 2)) || group < 1 ||
      start.size() != outputs.shape(0) * add.size() * kDotOutputs)
    throw std::invalid_argument("not the numbers of a filtering");
  DotWinograd& s = p.add_chained<DotWinograd>(walk, channels, chain);
  s.source = p.view(source);
  s.side = side;
  s.top = top_left.first;
  s.left = top_left.second;
  const uint8_t* const all = hold(p.keep_, weights);
  const int32_t* const starts = hold(p.keep_, start);
  for (size_t i = 0; i < outputs.shape(0); ++i) {
    const int64_t* const o = outputs.data() + 4 * i;
    s.outputs.push_back({static_cast<int>(o[0]), static_cast<int>(o[1]), all + o[3], starts + i * add.size() * kDotOutputs});
  }
  s.quads.assign(quads.data(), quads.data() + quads.size());
  for (size_t c = 0; c < quads.size(); ++c) s.offsets.push_back(static_cast<int32_t>(c) * kDotDepth);
  s.add.assign(add.data(), add.data() + add.size());
  s.bits = bits;
  s.tables = hold(p.keep_, tables);
  s.narrow_quads = narrow_quads;
  s.half = half;
  if (half && p.set()->run_half == nullptr) throw std::invalid_argument("there are no products modulo 2^16");
  s.group = group;
  s.together = together;
  if (static_cast<int64_t>(scratch->size()) < threads * s.scratch_bytes()) throw std::invalid_argument("too little scratch");
  s.scratch = hold(p.keep_, scratch);
}

void add_depthwise(DotPlan& p, const DotWalk& walk, int channels, const std::vector<HeldDotOp>& chain,
                   const HeldDotView& source, Pair stride, Array<int32_t> offsets, Array<int32_t> weights,
                   Array<int32_t> start) {
  DotDepthwiseConvolution& s = p.add_chained<DotDepthwiseConvolution>(walk, channels, chain);
  s.source = p.view(source);
  s.stride_y = stride.first;
  s.stride_x = stride.second;
  s.taps = static_cast<int>(offsets.size());
  s.offsets = hold(p.keep_, offsets);
  s.weights = hold(p.keep_, weights);
  s.start = hold(p.keep_, start);
}

template <class S>
void set_window(S& s, Pair kernel, Pair stride, Pair top_left, Pair dilation) {
  s.kernel_y = kernel.first, s.kernel_x = kernel.second;
  s.stride_y = stride.first, s.stride_x = stride.second;
  s.top = top_left.first, s.left = top_left.second;
  s.dilation_y = dilation.first, s.dilation_x = dilation.second;
}

void add_window(DotPlan& p, const DotWalk& walk, int channels, const std::vector<HeldDotOp>& chain,
                const std::string& kind, const HeldDotView& source, bool bytes, int zero, Pair kernel, Pair stride,
                Pair top_left, Pair dilation) {
  DotWindow& s = p.add_chained<DotWindow>(walk, channels, chain);
  using Kind = DotWindow::Kind;
  s.kind = kind == "largest" ? Kind::largest : kind == "sum" ? Kind::sum : Kind::copy;
  s.source = p.view(source);
  s.bytes = bytes;
  s.zero = zero;
  set_window(s, kernel, stride, top_left, dilation);
}

// `numbers` [3][n]: which of `size` rows or columns, its weight and the next one's.
std::vector<DotBetween> between(const Array<int32_t>& numbers, int size) {
  const size_t n = numbers.size() / 3;
  const int32_t *const at = numbers.data(), *const weight = at + n, *const next = weight + n;
  std::vector<DotBetween> all;
  for (size_t i = 0; i < n; ++i) all.push_back({{at[i], std::min(at[i] + 1, size - 1)}, {weight[i], next[i]}});
  return all;
}

void add_interpolate(DotPlan& p, const DotWalk& walk, int channels, const std::vector<HeldDotOp>& chain,
                     const HeldDotView& source, bool bytes, int zero, const Array<int32_t>& down,
                     const Array<int32_t>& across) {
  DotWindow& s = p.add_chained<DotWindow>(walk, channels, chain);
  s.kind = DotWindow::Kind::between;
  s.source = p.view(source);
  s.bytes = bytes;
  s.zero = zero;
  s.down = between(down, s.source.height);
  s.across = between(across, s.source.width);
}

// Makes one step of the last two, a convolution and the window over it. `half`: between them are sums modulo 2^16.
void band(DotPlan& p, int rows, Memory scratch, int64_t scratch_bytes, bool half) {
  auto banded = std::make_unique<DotBanded>();
  banded->window.reset(static_cast<DotWindow*>(p.plan_.take().release()));
  banded->convolution.reset(static_cast<DotStep*>(p.plan_.take().release()));
  if (half) {
    auto& convolution = dynamic_cast<DotConvolution&>(*banded->convolution);
    const bool stored = convolution.chain.size() == 1 && convolution.chain[0].kind == DotOp::Kind::store;
    if (p.set()->run_half == nullptr || !stored || !convolution.chain[0].view.narrow || !convolution.blocks_together())
      throw std::invalid_argument("no band of sums modulo 2^16");
    convolution.half = banded->window->half = true;
  }
  banded->band_rows = rows;
  banded->scratch = hold(p.keep_, scratch);
  banded->scratch_bytes = scratch_bytes;
  p.add(std::move(banded));
}

void add_bytes(DotPlan& p, const HeldDotView& source, const HeldDotView& target, Pair kernel, Pair stride,
               Pair top_left, Pair dilation, Pair factor) {
  DotBytes& s = p.add(std::make_unique<DotBytes>());
  s.set = p.set();
  s.source = p.view(source);
  s.target = p.view(target);
  set_window(s, kernel, stride, top_left, dilation);
  s.factor_y = factor.first, s.factor_x = factor.second;
}

void add_encode(DotPlan& p, int input, std::vector<float> thresholds, MaybeArray<uint8_t> table, int multiplier, int add,
                const HeldDotView& target) {
  DotEncode& s = p.add(std::make_unique<DotEncode>(p.isa(), std::move(thresholds), multiplier, add));
  s.set = p.set();
  s.input = input;
  s.table = hold(p.keep_, table);
  s.target = p.view(target);
}

// Weights to the kernels' order. `codes` [O][D][T]; `taps` of T that are used, `columns` [together * D][taps] of the
// depth that they meet; `rank` of every code, 0 for the value 0 where there is padding. Output o belongs to group
// o / per_group, and `together` groups share a depth. Returns nothing; `out` [blocks][chunks][32 * bits] vectors.
void pack(Array<uint8_t> codes, Array<int64_t> taps, Array<int64_t> columns, Array<uint8_t> rank,
          Array<int64_t> outputs, int per_group, int together, int64_t block_bytes, int bits,
          nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> out) {
  const int64_t depth = codes.shape(1), all_taps = codes.shape(2), used = taps.size();
  const int fields = 8 / bits;
  const uint8_t *const source = codes.data(), *const ranks = rank.data();
  uint8_t* const target = out.data();
  // Where a byte of the depth goes, for the first output of a block: byte and shift.
  struct Spot {
    int64_t at;
    int shift[2];  // of the first and the second half of the outputs
    int64_t second;
  };
  std::vector<Spot> spots(columns.size());
  for (size_t i = 0; i < columns.size(); ++i) {
    const int64_t column = columns.data()[i], chunk = column / kDotDepth, byte = column % kDotDepth;
    const auto place = [&](int half, int64_t& at, int& shift) {
      const int64_t row = chunk * kDotOutputs + half * 16 + byte / 4;
      at = row / fields * 64 + byte % 4;
      shift = static_cast<int>(row % fields) * bits;
    };
    place(0, spots[i].at, spots[i].shift[0]);
    place(1, spots[i].second, spots[i].shift[1]);
  }
  nb::gil_scoped_release unlocked;
  for (size_t b = 0; b < outputs.shape(0); ++b) {
    const int64_t first = outputs.data()[2 * b], count = outputs.data()[2 * b + 1];
    uint8_t* const block = target + static_cast<int64_t>(b) * block_bytes;
    for (int64_t o = 0; o < count; ++o) {
      const int64_t output = first + o, member = output / per_group % together;
      const bool high = o >= 16;
      uint8_t* const lane = block + o % 16 * 4;
      const uint8_t* code = source + output * depth * all_taps;
      const Spot* spot = spots.data() + member * depth * used;
      for (int64_t d = 0; d < depth; ++d, code += all_taps)
        for (int64_t t = 0; t < used; ++t, ++spot)
          lane[high ? spot->second : spot->at] |= static_cast<uint8_t>(ranks[code[taps.data()[t]]] << spot->shift[high]);
    }
  }
}

}  // namespace

void bind_dot(nb::module_& m) {
  m.attr("dot_outputs") = kDotOutputs;
  m.attr("dot_pixels") = kDotPixels;
  m.attr("dot_depth") = kDotDepth;
  m.attr("winograd_batch") = DotWinograd::kBatch;
  m.def("winograd_scratch",
        nb::overload_cast<int, int, int, int>(&DotWinograd::scratch_bytes), "side"_a, "chunks"_a, "group"_a, "held_blocks"_a);

  nb::class_<DotWalk>(m, "DotWalk")
      .def(
          "__init__",
          [](DotWalk* self, const std::string& kind, int height, int width, int rows, int pitch, Pair step, Pair first) {
            const DotWalk::Kind k = kind == "flat"   ? DotWalk::Kind::flat
                                    : kind == "rows" ? DotWalk::Kind::rows
                                                     : DotWalk::Kind::images;
            new (self) DotWalk{k, height, width, rows, pitch, step.first, step.second, first.first, first.second};
          },
          "kind"_a, "height"_a, "width"_a, "rows"_a, "pitch"_a, "step"_a = Pair{1, 1}, "first"_a = Pair{0, 0});

  nb::class_<HeldDotView>(m, "DotView")
      .def(
          "__init__",
          [](HeldDotView* self, Memory memory, int64_t start, int64_t step, int rows, int pitch, int height, int width,
             int channels, bool exact, bool narrow) {
            new (self) HeldDotView;
            self->base = hold(self->keep, memory) + start;
            self->step = step;
            self->rows = rows;
            self->pitch = pitch;
            self->height = height;
            self->width = width;
            self->channels = channels;
            self->exact = exact;
            self->narrow = narrow;
          },
          nb::kw_only(), "memory"_a, "start"_a, "step"_a, "rows"_a, "pitch"_a, "height"_a, "width"_a,
          "channels"_a, "exact"_a, "narrow"_a = false);

  nb::class_<HeldDotOp>(m, "DotOp")
      .def_static(
          "requantize",
          [](Array<int64_t> multiplier, Array<int64_t> shift, Array<int64_t> offset, int32_t lo, int32_t hi,
             bool narrow) {
            HeldDotOp op = operation(DotOp::Kind::requantize, nullptr);
            op.multiplier = hold(op.keep, multiplier);
            op.shift = hold(op.keep, shift);
            op.offset = hold(op.keep, offset);
            op.narrow = narrow;
            op.lo = lo;
            op.hi = hi;
            return op;
          },
          "multiplier"_a.noconvert(), "shift"_a.noconvert(), "offset"_a.noconvert(), "lo"_a, "hi"_a,
          "narrow"_a)
      .def_static(
          "add",
          [](const HeldDotView& other, int32_t lo, int32_t hi) {
            HeldDotOp op = operation(DotOp::Kind::add, &other);
            op.lo = lo;
            op.hi = hi;
            return op;
          },
          "other"_a, "lo"_a, "hi"_a)
      .def_static("store", [](const HeldDotView& target) { return operation(DotOp::Kind::store, &target); }, "target"_a)
      .def_static(
          "compare",
          [](const HeldDotView& target, Array<int32_t> limits, MaybeArray<uint8_t> table, int shift, int add) {
            HeldDotOp op = operation(DotOp::Kind::compare, &target);
            op.limits = hold(op.keep, limits);
            op.count = static_cast<int>(limits.shape(1));
            op.table = hold(op.keep, table);
            op.code = {shift, add};
            return op;
          },
          "target"_a, "limits"_a.noconvert(), "table"_a.noconvert().none(), "shift"_a, "add"_a)
      .def_static(
          "line",
          [](const HeldDotView& target, Array<float> slope, Array<float> intercept, int last, int shift, int add,
             MaybeArray<int32_t> limits, int ranks) {
            HeldDotOp op = line(DotOp::Kind::line, target, last, shift, add, limits, ranks);
            op.slope = hold(op.keep, slope);
            op.intercept = hold(op.keep, intercept);
            return op;
          },
          "target"_a, "slope"_a.noconvert(), "intercept"_a.noconvert(), "last"_a, "shift"_a, "add"_a,
          "limits"_a.noconvert().none(), "ranks"_a)
      .def_static(
          "fine_line",
          [](const HeldDotView& target, Array<double> slope, Array<double> intercept, int last, int shift, int add,
             MaybeArray<int32_t> limits, int ranks) {
            HeldDotOp op = line(DotOp::Kind::fine_line, target, last, shift, add, limits, ranks);
            op.fine_slope = hold(op.keep, slope);
            op.fine_intercept = hold(op.keep, intercept);
            return op;
          },
          "target"_a, "slope"_a.noconvert(), "intercept"_a.noconvert(), "last"_a, "shift"_a, "add"_a,
          "limits"_a.noconvert().none(), "ranks"_a)
      .def_static(
          "scale",
          [](int output, const HeldDotView& target, Array<float> factor, Array<float> bias) {
            HeldDotOp op = operation(DotOp::Kind::scale, &target);
            op.output = output;
            op.slope = hold(op.keep, factor);
            op.intercept = hold(op.keep, bias);
            return op;
          },
          "output"_a, "target"_a, "factor"_a.noconvert(), "bias"_a.noconvert());

  nb::class_<DotPlan>(m, "DotPlan")
      .def(nb::init<std::shared_ptr<Machine>>(), "machine"_a)
      .def("__len__", [](const DotPlan& p) { return p.plan_.size(); })
      .def("convolution", add_convolution, nb::kw_only(), "walk"_a, "channels"_a, "chain"_a, "source"_a, "stride"_a,
           "outputs"_a.noconvert(), "lists"_a, "start"_a.noconvert(), "weights"_a.noconvert(), "bits"_a,
           "tables"_a.noconvert().none(), "narrow_quads"_a, "scratch"_a, "scratch_chunks"_a,
           "piece"_a = 0, "reads"_a.noconvert().none() = nb::none(), "gather_scratch"_a.none() = nb::none(),
           "slots"_a = 0)
      .def("winograd", add_winograd, nb::kw_only(), "walk"_a, "channels"_a, "chain"_a, "source"_a, "side"_a, "top_left"_a,
           "outputs"_a.noconvert(), "quads"_a.noconvert(), "add"_a.noconvert(), "start"_a.noconvert(),
           "weights"_a.noconvert(), "bits"_a, "tables"_a.noconvert().none(), "narrow_quads"_a, "half"_a, "group"_a,
           "together"_a, "scratch"_a, "threads"_a)
      .def("depthwise", add_depthwise, nb::kw_only(), "walk"_a, "channels"_a, "chain"_a, "source"_a, "stride"_a,
           "offsets"_a.noconvert(), "weights"_a.noconvert(), "start"_a.noconvert())
      .def("window", add_window, nb::kw_only(), "walk"_a, "channels"_a, "chain"_a, "kind"_a, "source"_a, "bytes"_a,
           "zero"_a = 0, "kernel"_a = Pair{1, 1}, "stride"_a = Pair{1, 1}, "top_left"_a = Pair{0, 0},
           "dilation"_a = Pair{1, 1})
      .def("interpolate", add_interpolate, nb::kw_only(), "walk"_a, "channels"_a, "chain"_a, "source"_a, "bytes"_a,
           "zero"_a, "down"_a.noconvert(), "across"_a.noconvert())
      .def("band", band, nb::kw_only(), "rows"_a, "scratch"_a, "scratch_bytes"_a, "half"_a)
      .def("bytes", add_bytes, nb::kw_only(), "source"_a, "target"_a, "kernel"_a = Pair{1, 1}, "stride"_a = Pair{1, 1},
           "top_left"_a = Pair{0, 0}, "dilation"_a = Pair{1, 1}, "factor"_a = Pair{1, 1})
      .def("encode", add_encode, nb::kw_only(), "input"_a, "thresholds"_a, "table"_a.noconvert().none(), "multiplier"_a, "add"_a,
           "target"_a)
      .def(
          "run",
          [](DotPlan& p, const std::vector<InputArray>& inputs, const std::vector<OutputArray>& outputs, int begin,
             int end, std::optional<SecondsArray> seconds) { return run_plan(p.plan_, inputs, outputs, begin, end, seconds); },
          "inputs"_a.noconvert(), "outputs"_a.noconvert(), "begin"_a, "end"_a, "seconds"_a.noconvert() = nb::none());

  m.def("dot_pack", pack, nb::kw_only(), "codes"_a.noconvert(), "taps"_a.noconvert(), "columns"_a.noconvert(),
        "rank"_a.noconvert(), "outputs"_a.noconvert(), "per_group"_a, "together"_a, "block_bytes"_a, "bits"_a,
        "out"_a.noconvert());
  m.def(
      "dot_rate",
      [](const Machine& machine, int chunks, int narrow_quads, int repeat) {
        const DotSet& set = *machine.isa->dot;
        std::vector<uint8_t> pixels(static_cast<size_t>(chunks) * kDotPixels * kDotDepth + 64, 1);
        std::vector<int8_t> weights(static_cast<size_t>(chunks) * kDotChunk + 64, 1);
        std::vector<int32_t> offsets, start(kDotOutputs), sums(kDotPixels * kDotOutputs);
        for (int c = 0; c < chunks; ++c) offsets.push_back(c * kDotPixels * kDotDepth);
        const std::vector<uint8_t> quads(static_cast<size_t>(chunks), kDotDepth / 4);
        const DotTile tile{pixels.data(), kDotDepth, offsets.data(), quads.data(), chunks,     weights.data(),
                           start.data(),  0,         sums.data(),    kDotPixels, kDotOutputs, narrow_quads, 0};
        nb::gil_scoped_release unlocked;
        set.begin();
        const auto begin = std::chrono::steady_clock::now();
        for (int i = 0; i < repeat; ++i) set.run(tile);
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
        set.end();
        return std::make_pair(seconds, int64_t{repeat} * chunks * kDotPixels * kDotChunk);
      },
      "machine"_a, "chunks"_a, "narrow_quads"_a, "repeat"_a,
      "Seconds and multiply-accumulates of a tile whose data stay in the first cache.");
  m.def("dot_wants_whole_rows", [](const Machine& machine) { return machine.isa->dot->whole_rows; }, "machine"_a);
  m.def("dot_has_narrow_sums", [](const Machine& machine) { return machine.isa->dot->narrow_sums; }, "machine"_a);
  m.def("dot_has_halves", [](const Machine& machine) { return machine.isa->dot->run_half != nullptr; }, "machine"_a);
  m.def("has_fast_dot", [](const Machine& machine) { return machine.isa->dot->fast; }, "machine"_a);
}

}  // namespace bitbranch
