// Plans for Python, of which only the files of bindings, arrays.hpp and run_binding.hpp know. Arrays are held, not copied;
// the planner in Python is trusted with their shapes.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <optional>
#include <stdexcept>
#include <string>

#include "arrays.hpp"
#include "buffer.hpp"
#include "ceiling.hpp"
#include "concat.hpp"
#include "convolution.hpp"
#include "encode.hpp"
#include "instruction_sets.hpp"
#include "interpolate.hpp"
#include "pool.hpp"
#include "repack.hpp"
#include "run_binding.hpp"
#include "stream.hpp"
#include "upsample.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace bitbranch {
namespace {

using AnyArray = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;

struct HeldView : View {
  std::shared_ptr<Buffer> buffer;
};

struct HeldOutput : Epilogue::Output {
  Keep keep;
};

// Fixed-point rescaling per channel, padded to whole chunks, and the stream that is added.
struct HeldStream : Epilogue::Stream {
  Keep keep;
};

struct HeldEpilogue : Epilogue {
  Keep keep;
};

// Of accumulators within acc_lo .. acc_hi.
std::shared_ptr<std::vector<Rescale>> rescales(Array<int32_t> multiplier, Array<uint8_t> shift, Array<int64_t> offset,
                                               int64_t lo, int64_t hi, int64_t acc_lo, int64_t acc_hi, int32_t sum_lo,
                                               int32_t sum_hi) {
  const size_t channels = multiplier.size();
  auto all = std::make_shared<std::vector<Rescale>>((channels + kChunk - 1) / kChunk * kChunk);
  for (size_t c = 0; c < channels; ++c) {
    Rescale& r = (*all)[c];
    r.multiplier = multiplier.data()[c];
    r.shift = shift.data()[c];
    r.offset = offset.data()[c] + (r.shift > 0 ? int64_t{1} << (r.shift - 1) : 0);
    r.lo = lo;
    r.hi = hi;
    r.sum_lo = sum_lo;
    r.sum_hi = sum_hi;
    for (const int64_t acc : {acc_lo, acc_hi}) {
      const int64_t shifted = (acc * r.multiplier + r.offset) >> r.shift;
      r.narrow = r.narrow && shifted == static_cast<int32_t>(shifted);
    }
  }
  return all;
}

const InstructionSet* find_instruction_set(const std::string& name) {
  for (const InstructionSet* set : instruction_sets())
    if (name == set->name) return set;
  throw std::invalid_argument("unknown instruction set " + name);
}

const Kernel& find_kernel(const InstructionSet& set, const std::string& family, int bits, int outputs, int pixels) {
  for (int i = 0; i < set.kernel_count; ++i) {
    const Kernel& k = set.kernels[i];
    if (family == k.family && bits == k.bits && outputs == k.outputs && pixels == k.pixels) return k;
  }
  throw std::invalid_argument("no kernel " + family);
}

using KernelKey = std::tuple<std::string, int, int, int>;  // family, bits, outputs, pixels

KernelKey key_of(nb::handle kernel) {
  return {nb::cast<std::string>(kernel.attr("family")), nb::cast<int>(kernel.attr("bits")),
          nb::cast<int>(kernel.attr("outputs")), nb::cast<int>(kernel.attr("pixels"))};
}

// A plan together with the arrays and buffers that its steps point into.
class HeldPlan {
 public:
  explicit HeldPlan(std::shared_ptr<Machine> machine) : plan_(std::move(machine)) {}

  const InstructionSet* isa() const { return plan_.machine().isa; }

  View hold_view(const HeldView& view) {
    keep_.push_back(view.buffer);
    return view;
  }

  Epilogue hold_epilogue(const HeldEpilogue& epilogue) {
    keep_.insert(keep_.end(), epilogue.keep.begin(), epilogue.keep.end());
    Epilogue e = epilogue;
    e.isa = isa();
    return e;
  }

  template <class T>
  T& add(std::unique_ptr<T> step) {
    T& s = *step;
    plan_.add(std::move(step));
    return s;
  }

  Plan plan_;
  Keep keep_;
};

void add_encode(HeldPlan& p, int input, int channels, std::vector<float> thresholds, MaybeArray<uint8_t> table,
                int multiplier, int add, const HeldView& target, std::pair<int, int> size,
                std::pair<int, int> stride) {
  Encode& s = p.add(std::make_unique<Encode>(p.isa(), std::move(thresholds), multiplier, add));
  s.input = input;
  s.channels = channels;
  s.table = hold(p.keep_, table);
  s.target = p.hold_view(target);
  s.height = size.first;
  s.width = size.second;
  s.stride_y = stride.first;
  s.stride_x = stride.second;
}

void add_pair(HeldPlan& p, const HeldView& source, const HeldView& target, int64_t head,
              const std::vector<std::tuple<int, int, int64_t>>& planes) {
  PairUp& s = p.add(std::make_unique<PairUp>());
  s.isa = p.isa();
  s.source = p.hold_view(source);
  s.target = p.hold_view(target);
  s.head = head;
  for (const auto& [first, second, distance] : planes) s.planes.push_back({first, second, distance});
}

void add_convolution(HeldPlan& p, nb::handle kernel, const HeldView& source, Array<int32_t> offsets,
                     Array<int32_t> first_tap, Array<int32_t> taps, Array<int64_t> weights_at, Array<uint8_t> weights,
                     MaybeArray<uint8_t> dictionary, int64_t second, int word_bytes, int flush, int span, int chunks,
                     const HeldEpilogue& epilogue, std::optional<Window> pool, const HeldEpilogue* before) {
  const auto [family, bits, outputs, pixels] = key_of(kernel);
  Convolution& s = p.add(std::make_unique<Convolution>());
  s.isa = p.isa();
  s.kernel = find_kernel(*s.isa, family, bits, outputs, pixels);
  s.source = p.hold_view(source);
  s.offsets = hold(p.keep_, offsets);
  s.first_tap = hold(p.keep_, first_tap);
  s.taps = hold(p.keep_, taps);
  s.weights_at = hold(p.keep_, weights_at);
  s.weights = hold(p.keep_, weights);
  s.dictionary = hold(p.keep_, dictionary);
  s.second = second;
  s.word_bytes = word_bytes;
  s.flush = flush;
  s.span = span;
  s.chunks = chunks;
  s.epilogue = p.hold_epilogue(epilogue);
  if (!pool || !before) return;
  s.pooled = true;
  s.window = *pool;
  s.before = p.hold_epilogue(*before);
  s.epilogue.whole = false;
  s.reserve(p.plan_.machine().pool.threads());
}

void add_linear(HeldPlan& p, nb::handle single, nb::handle several, std::shared_ptr<Buffer> activations, int depth,
                Array<uint8_t> weights, int weight_bits, int step, int low, int flush, int outputs,
                const HeldEpilogue& epilogue) {
  Linear& s = p.add(std::make_unique<Linear>());
  const auto one = key_of(single), few = key_of(several);
  s.single = find_kernel(*p.isa(), std::get<0>(one), std::get<1>(one), std::get<2>(one), std::get<3>(one));
  s.several = find_kernel(*p.isa(), std::get<0>(few), std::get<1>(few), std::get<2>(few), std::get<3>(few));
  s.activations = activations->data();
  s.depth = depth;
  s.weights = hold(p.keep_, weights);
  s.weight_bits = weight_bits;
  s.step = step;
  s.low = low;
  s.flush = flush;
  s.outputs = outputs;
  s.reserve(static_cast<int>(activations->size() / depth));
  p.keep_.push_back(std::move(activations));
  s.epilogue = p.hold_epilogue(epilogue);
}

void add_repack(HeldPlan& p, const HeldView& source, const Form& from, const HeldView& target, const Form& to,
                int channels, std::pair<int, int> stride, const std::vector<std::pair<int, int>>& phases) {
  Repack& s = p.add(std::make_unique<Repack>());
  s.isa = p.isa();
  s.source = p.hold_view(source);
  s.from = from;
  s.target = p.hold_view(target);
  s.to = to;
  s.channels = channels;
  s.stride_y = stride.first;
  s.stride_x = stride.second;
  for (const auto& [y, x] : phases) s.phases.push_back({y, x});
}

void add_flatten(HeldPlan& p, const HeldView& source, const Form& from, int channels, std::shared_ptr<Buffer> target,
                 int depth, bool narrow) {
  Flatten& s = p.add(std::make_unique<Flatten>(from));
  s.source = p.hold_view(source);
  s.channels = channels;
  s.target = target->data();
  s.narrow = narrow;
  p.keep_.push_back(std::move(target));
  s.depth = depth;
}

void add_threshold(HeldPlan& p, const HeldView& source, int chunks, const HeldEpilogue& epilogue) {
  Threshold& s = p.add(std::make_unique<Threshold>());
  s.source = p.hold_view(source);
  s.chunks = chunks;
  s.epilogue = p.hold_epilogue(epilogue);
}

void add_requantize(HeldPlan& p, const HeldView& source, const HeldView& target, int channels,
                    const HeldStream& stream) {
  Requantize& s = p.add(std::make_unique<Requantize>());
  s.isa = p.isa();
  s.source = p.hold_view(source);
  s.target = p.hold_view(target);
  s.channels = channels;
  s.rescale = stream.rescale;
  p.keep_.insert(p.keep_.end(), stream.keep.begin(), stream.keep.end());
}

void add_add(HeldPlan& p, const HeldView& left, const HeldView& right, const HeldView& target, int channels, int32_t lo,
             int32_t hi) {
  Add& s = p.add(std::make_unique<Add>());
  s.isa = p.isa();
  s.left = p.hold_view(left);
  s.right = p.hold_view(right);
  s.target = p.hold_view(target);
  s.channels = channels;
  s.lo = lo;
  s.hi = hi;
}

void add_max_pool_codes(HeldPlan& p, const HeldView& source, const HeldView& target, const Form& form, int chunks,
                        const Window& window) {
  p.add(std::make_unique<MaxPoolCodes>(p.isa(), p.hold_view(source), p.hold_view(target), form, chunks, window,
                                       p.plan_.machine().pool.threads()));
}

void add_pool_integers(HeldPlan& p, const std::string& kind, const HeldView& source, const Form& form,
                       const HeldView& target, int channels, const Window& window) {
  PoolIntegers& s = p.add(std::make_unique<PoolIntegers>());
  s.kind = kind == "max"   ? PoolIntegers::Kind::max
           : kind == "sum" ? PoolIntegers::Kind::sum
                           : PoolIntegers::Kind::sum_bytes;
  s.source = p.hold_view(source);
  s.form = form;
  s.target = p.hold_view(target);
  s.channels = channels;
  s.window = window;
  s.isa = p.isa();
  s.reserve(p.plan_.machine().pool.threads());
}

void add_concat(HeldPlan& p, const HeldView& target, const std::vector<const HeldView*>& parts,
                const std::vector<std::array<int, 6>>& pieces) {
  std::vector<View> views;
  for (const HeldView* part : parts) views.push_back(p.hold_view(*part));
  std::vector<Concat::Piece> all;
  for (const auto& [plane, part, part_plane, left, right, mask] : pieces)
    all.push_back({plane, part, part_plane, left, right, mask});
  p.add(std::make_unique<Concat>(p.hold_view(target), std::move(views), all));
}

void add_upsample_nearest(HeldPlan& p, const HeldView& source, const HeldView& target, int planes,
                          std::pair<int, int> factor) {
  UpsampleNearest& s = p.add(std::make_unique<UpsampleNearest>());
  s.source = p.hold_view(source);
  s.target = p.hold_view(target);
  s.planes = planes;
  s.factor_y = factor.first;
  s.factor_x = factor.second;
}

Interpolate::Axis axis_of(const Array<int32_t>& numbers) {  // [3][n]
  const int32_t* const p = numbers.data();
  const size_t n = numbers.size() / 3;
  return {{p, p + n}, {p + n, p + 2 * n}, {p + 2 * n, p + 3 * n}};
}

void add_interpolate(HeldPlan& p, const HeldView& source, std::optional<Form> form, int channels,
                     const Array<int32_t>& down, const Array<int32_t>& across, const HeldEpilogue& epilogue, int output,
                     MaybeArray<float> scale, MaybeArray<float> bias) {
  p.add(std::make_unique<Interpolate>(
      p.isa(), p.hold_view(source), form.has_value(), form.value_or(Form{}), channels, axis_of(down), axis_of(across),
      p.hold_epilogue(epilogue), Interpolate::Reals{output, hold(p.keep_, scale), hold(p.keep_, bias)},
      p.plan_.machine().pool.threads()));
}

void add_scale(HeldPlan& p, int output, const HeldView& source, int channels, Array<float> scale, Array<float> bias) {
  Scale& s = p.add(std::make_unique<Scale>());
  s.isa = p.isa();
  s.output = output;
  s.source = p.hold_view(source);
  s.channels = channels;
  s.scale = hold(p.keep_, scale);
  s.bias = hold(p.keep_, bias);
}

}  // namespace
}  // namespace bitbranch

namespace bitbranch {
void bind_dot(nb::module_& m);       // dot/bindings.cpp
void bind_training(nb::module_& m);  // training_bindings.cpp
}

NB_MODULE(_core, m) {
  using namespace bitbranch;

  m.attr("chunk") = kChunk;
  m.attr("max_pixels") = kMaxPixels;
  m.def("instruction_sets", [] {
    std::vector<std::string> names;
    for (const InstructionSet* set : instruction_sets()) names.push_back(set->name);
    return names;
  });

  nb::class_<Kernel>(m, "Kernel")
      .def_prop_ro("family", [](const Kernel& k) { return std::string(k.family); })
      .def_ro("bits", &Kernel::bits)
      .def_ro("outputs", &Kernel::outputs)
      .def_ro("pixels", &Kernel::pixels);
  m.def("kernels", [](const std::string& isa) {
    const InstructionSet* set = find_instruction_set(isa);
    return std::vector<Kernel>(set->kernels, set->kernels + set->kernel_count);
  });

  nb::class_<Machine>(m, "Machine").def(
      "__init__",
      [](Machine* self, const std::string& isa, int threads) { new (self) Machine(find_instruction_set(isa), threads); },
      "isa"_a, "threads"_a)
      .def(
          "kernel_rate",
          [](const Machine&, const Kernel& kernel, int taps, int repeat) {
            const Rate rate = measure_kernel(kernel, taps, repeat);
            return std::make_pair(rate.seconds, rate.macs);
          },
          "kernel"_a, "taps"_a, "repeat"_a, nb::call_guard<nb::gil_scoped_release>(),
          "Seconds and multiply-accumulates of a kernel, run on one tile of so many taps that stays in the first cache.");

  nb::class_<Buffer>(m, "Buffer")
      .def(nb::init<size_t, uint8_t>(), "bytes"_a, "fill"_a = 0)
      .def_prop_ro("size", &Buffer::size)
      .def(
          "array",
          [](const std::shared_ptr<Buffer>& b) {
            return nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>(b->data(), {b->size()}, nb::find(b));
          },
          "The memory itself as bytes, not a copy.");

  nb::class_<Form>(m, "Form")
      .def(
          "__init__",
          [](Form* self, int bits, bool is_signed, int multiplier, int add, bool sextets) {
            new (self) Form{bits, is_signed, multiplier, add, sextets};
          },
          "bits"_a, "is_signed"_a, "multiplier"_a, "add"_a, "sextets"_a = false)
      .def_ro("bits", &Form::bits)
      .def_ro("is_signed", &Form::is_signed)
      .def_ro("multiplier", &Form::multiplier)
      .def_ro("add", &Form::add);

  nb::class_<HeldView>(m, "View").def(
      "__init__",
      [](HeldView* self, std::shared_ptr<Buffer> buffer, int64_t start, int64_t stride, int pixel_bytes, int height,
         int width, int rows, int pitch, std::pair<int, int> step) {
        new (self) HeldView;
        self->base = buffer->data() + start;
        self->stride = stride;
        self->pixel_bytes = pixel_bytes;
        self->height = height;
        self->width = width;
        self->rows = rows;
        self->pitch = pitch;
        self->step_y = step.first;
        self->step_x = step.second;
        self->buffer = std::move(buffer);
      },
      nb::kw_only(), "buffer"_a, "start"_a, "stride"_a, "pixel_bytes"_a, "height"_a, "width"_a, "rows"_a, "pitch"_a,
      "step"_a = std::pair<int, int>{1, 1});

  nb::class_<HeldOutput>(m, "Output", "A copy of the accumulators or of the stream: codes of a form, or integers.")
      .def(
          "__init__",
          [](HeldOutput* self, const HeldView& target, int channels, bool of_stream, std::optional<Form> form,
             MaybeArray<int32_t> limits, int thresholds, MaybeArray<float> guess, MaybeArray<uint8_t> table) {
            new (self) HeldOutput;
            self->keep.push_back(target.buffer);
            self->target = target;
            self->of_stream = of_stream;
            self->integers = !form;
            if (form) self->form = *form;
            self->limits = hold(self->keep, limits);
            self->thresholds = thresholds;
            self->guess = hold(self->keep, guess);
            self->table = hold(self->keep, table);
            self->channels = channels;
          },
          nb::kw_only(), "target"_a, "channels"_a, "of_stream"_a = false, "form"_a = nb::none(),
          "limits"_a.noconvert() = nb::none(), "thresholds"_a = 0, "guess"_a.noconvert() = nb::none(),
          "table"_a.noconvert() = nb::none());

  nb::class_<HeldStream>(m, "Stream", "Accumulators acc_lo .. acc_hi to a stream, and another stream added to it.")
      .def(
          "__init__",
          [](HeldStream* self, Array<int32_t> multiplier, Array<uint8_t> shift, Array<int64_t> offset, int64_t lo,
             int64_t hi, int64_t acc_lo, int64_t acc_hi, const HeldView* other, int32_t sum_lo, int32_t sum_hi) {
            new (self) HeldStream;
            auto all = rescales(multiplier, shift, offset, lo, hi, acc_lo, acc_hi, sum_lo, sum_hi);
            self->rescale = all->data();
            self->keep.push_back(std::move(all));
            if (other) {
              self->other = *other;
              self->keep.push_back(other->buffer);
            }
          },
          nb::kw_only(), "multiplier"_a.noconvert(), "shift"_a.noconvert(), "offset"_a.noconvert(), "lo"_a, "hi"_a,
          "acc_lo"_a, "acc_hi"_a, "other"_a = nb::none(), "sum_lo"_a = 0, "sum_hi"_a = 0);

  nb::class_<Window>(m, "Window")
      .def(
          "__init__",
          [](Window* self, std::pair<int, int> kernel, std::pair<int, int> stride, std::pair<int, int> top_left,
             std::pair<int, int> dilation) {
            new (self) Window{kernel.first,    kernel.second,   stride.first,   stride.second,
                              top_left.first,  top_left.second, dilation.first, dilation.second};
          },
          nb::kw_only(), "kernel"_a, "stride"_a, "top_left"_a, "dilation"_a);

  nb::class_<HeldEpilogue>(m, "Epilogue")
      .def(
          "__init__",
          [](HeldEpilogue* self, const std::vector<const HeldOutput*>& outputs, bool wide, int height, int width,
             int rows, int pitch, int multiplier, MaybeArray<int32_t> constants, MaybeArray<int32_t> border_class,
             MaybeArray<int32_t> border_terms, int border_classes, const HeldStream* stream) {
            new (self) HeldEpilogue;
            for (const HeldOutput* output : outputs) {
              self->outputs.push_back(*output);
              self->keep.insert(self->keep.end(), output->keep.begin(), output->keep.end());
            }
            if (stream) {
              self->stream = *stream;
              self->keep.insert(self->keep.end(), stream->keep.begin(), stream->keep.end());
            }
            self->wide = wide;
            self->height = height;
            self->width = width;
            self->rows = rows;
            self->pitch = pitch;
            self->multiplier = multiplier;
            self->constants = hold(self->keep, constants);
            self->border_class = hold(self->keep, border_class);
            self->border_terms = hold(self->keep, border_terms);
            self->border_classes = border_classes;
          },
          nb::kw_only(), "outputs"_a, "wide"_a, "height"_a, "width"_a, "rows"_a, "pitch"_a, "multiplier"_a = 1,
          "constants"_a.noconvert() = nb::none(), "border_class"_a.noconvert() = nb::none(),
          "border_terms"_a.noconvert() = nb::none(), "border_classes"_a = 0, "stream"_a = nb::none());

  nb::class_<HeldPlan>(m, "Plan")
      .def(nb::init<std::shared_ptr<Machine>>(), "machine"_a)
      .def("__len__", [](const HeldPlan& p) { return p.plan_.size(); })
      .def("encode", add_encode, nb::kw_only(), "input"_a, "channels"_a, "thresholds"_a, "table"_a.noconvert().none(),
           "multiplier"_a, "add"_a, "target"_a, "size"_a, "stride"_a)
      .def("pair", add_pair, nb::kw_only(), "source"_a, "target"_a, "head"_a, "planes"_a)
      .def("convolution", add_convolution, nb::kw_only(), "kernel"_a, "source"_a, "offsets"_a.noconvert(),
           "first_tap"_a.noconvert(), "taps"_a.noconvert(), "weights_at"_a.noconvert(), "weights"_a.noconvert(),
           "dictionary"_a.noconvert().none(), "second"_a, "word_bytes"_a, "flush"_a, "span"_a, "chunks"_a, "epilogue"_a,
           "pool"_a = nb::none(), "before"_a = nb::none())
      .def("linear", add_linear, nb::kw_only(), "single"_a, "several"_a, "activations"_a, "depth"_a,
           "weights"_a.noconvert(), "weight_bits"_a, "step"_a, "low"_a, "flush"_a, "outputs"_a, "epilogue"_a)
      .def("repack", add_repack, nb::kw_only(), "source"_a, "source_form"_a, "target"_a, "target_form"_a, "channels"_a,
           "stride"_a, "phases"_a)
      .def("flatten", add_flatten, nb::kw_only(), "source"_a, "form"_a, "channels"_a, "target"_a, "depth"_a, "narrow"_a)
      .def("threshold", add_threshold, nb::kw_only(), "source"_a, "chunks"_a, "epilogue"_a)
      .def("requantize", add_requantize, nb::kw_only(), "source"_a, "target"_a, "channels"_a, "stream"_a)
      .def("add", add_add, nb::kw_only(), "left"_a, "right"_a, "target"_a, "channels"_a, "lo"_a, "hi"_a)
      .def("max_pool_codes", add_max_pool_codes, nb::kw_only(), "source"_a, "target"_a, "form"_a, "chunks"_a,
           "window"_a)
      .def("pool_integers", add_pool_integers, nb::kw_only(), "kind"_a, "source"_a, "form"_a, "target"_a, "channels"_a,
           "window"_a)
      .def("concat", add_concat, nb::kw_only(), "target"_a, "parts"_a, "pieces"_a)
      .def("upsample_nearest", add_upsample_nearest, nb::kw_only(), "source"_a, "target"_a, "planes"_a, "factor"_a)
      .def("interpolate", add_interpolate, nb::kw_only(), "source"_a, "form"_a.none(), "channels"_a,
           "down"_a.noconvert(), "across"_a.noconvert(), "epilogue"_a, "output"_a = 0,
           "scale"_a.noconvert().none() = nb::none(), "bias"_a.noconvert().none() = nb::none())
      .def("scale", add_scale, nb::kw_only(), "output"_a, "source"_a, "channels"_a, "scale"_a.noconvert(),
           "bias"_a.noconvert())
      .def(
          "run",
          [](HeldPlan& p, const std::vector<InputArray>& inputs, const std::vector<OutputArray>& outputs, int begin,
             int end, std::optional<SecondsArray> seconds) { return run_plan(p.plan_, inputs, outputs, begin, end, seconds); },
          "inputs"_a.noconvert(), "outputs"_a.noconvert(), "begin"_a, "end"_a, "seconds"_a.noconvert() = nb::none());
  bind_training(m);
  bind_dot(m);

#ifdef BITBRANCH_COUNT_ALLOCATIONS
  m.def("allocations", [] { return std::pair(allocations.load(), allocations_in_runs.load()); },
        "How often memory was allocated since the first run, and while plans ran.");
#endif
}
