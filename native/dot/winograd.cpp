#include "winograd.hpp"

#include <algorithm>
#include <cstring>

namespace bitbranch {

namespace {
int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Rows {
  uint8_t at[kDotPixels];
  constexpr Rows() : at() {
    for (int i = 0; i < kDotPixels; ++i) at[i] = static_cast<uint8_t>(i);
  }
};
constexpr Rows kRows;  // 0, 1, 2 ..
}  // namespace

// Weights are expanded and transformed where they are used: in memory they stay in few bits.
void DotWinograd::prepare_weights(int block, int8_t* out) const {
  const int64_t packed = int64_t{9} * kDotChunk * bits / 8;
  alignas(64) int8_t expanded[9 * kDotChunk];
  for (int c = 0; c < chunks(); ++c, out += kDotChunk) {
    const uint8_t* const from = outputs[block].weights + c * packed;
    if (bits < 8) set->expand(bits, tables, from, static_cast<int>(packed / 64), expanded);
    set->kernels({side, bits < 8 ? expanded : reinterpret_cast<const int8_t*>(from), out, weights_plane()});
  }
}

void DotWinograd::prepare_numbers(int64_t first, int count, uint8_t* out) const {
  const int bytes = chunks() * kDotDepth;
  for (int done = 0; done < count;) {
    const int64_t row = (first + done) / columns(), image = row / rows();
    const int column = static_cast<int>((first + done) % columns()), here = std::min(count - done, columns() - column);
    const uint8_t* const x = source.at(image, row % rows() * side - top, int64_t{column} * side - left);
    set->patches({side, x, source.step, source.step * source.pitch, here, bytes, add.data(), out + int64_t{done} * bytes,
                  numbers_plane()});
    done += here;
  }
}

// A segment is a row of the outputs of neighbouring patches.
void DotWinograd::describe_patches(int64_t first, int count, DotBlock& block) const {
  block.count = block.segments = 0;
  for (int done = 0; done < count;) {
    const int64_t row = (first + done) / columns(), image = row / rows();
    const int column = static_cast<int>((first + done) % columns()), here = std::min(count - done, columns() - column);
    const int y = static_cast<int>(row % rows()) * side, x = column * side;
    const int width = std::min(here * side, walk.width - x);
    for (int dy = 0; dy < std::min(side, walk.height - y); ++dy) {
      block.segment[block.segments++] = {width, image, y + dy, x};
      std::memcpy(block.row + block.count, &kRows.at[(dy * patches() + done) * side], width);
      block.count += width;
    }
    done += here;
  }
}

void DotWinograd::run(const Run& run) const {
  const int64_t all = int64_t{run.images} * rows() * columns(), groups = divide_up(all, group);
  const int64_t per_group = together ? 1 : blocks();
  const int64_t cost = 64 + int64_t{2} * group * planes() * chunks() * (together ? blocks() : 1);
  run.pool.parallel(groups * per_group, 1 + kWorthWaking / cost, [&](int part, int64_t begin, int64_t end) {
    uint8_t* const own = scratch + part * scratch_bytes();
    int8_t* const weights = reinterpret_cast<int8_t*>(own);
    uint8_t* const numbers = own + weights_bytes() * (together ? blocks() : 1);
    int32_t* const products = reinterpret_cast<int32_t*>(numbers + numbers_bytes());
    alignas(64) int32_t sums[kDotPixels * kDotOutputs];
    constexpr int most = kBatch / 3;  // at least three patches are finished at once
    DotBlock described[most];
    set->begin();
    for (int b = 0; together && begin < end && b < blocks(); ++b) prepare_weights(b, weights + b * weights_bytes());
    int64_t held = -1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t which = item / per_group, first = which * group;
      const int count = static_cast<int>(std::min<int64_t>(group, all - first));
      if (which != held) prepare_numbers(first, count, numbers);
      held = which;
      const int from = together ? 0 : static_cast<int>(item % per_group), to = together ? blocks() : from + 1;
      if (!together) prepare_weights(from, weights);
      for (int batch = 0; batch < count; batch += kBatch) {
        const int here = std::min(kBatch, count - batch), parts = static_cast<int>(divide_up(here, patches()));
        for (int k = 0; k < parts; ++k)
          describe_patches(first + batch + k * patches(), std::min(patches(), here - k * patches()), described[k]);
        for (int b = from; b < to; ++b) {
          const int8_t* const w = weights + (together ? b * weights_bytes() : 0);
          for (int plane = 0; plane < planes(); ++plane)
            set->run({numbers + plane * numbers_plane() + int64_t{batch} * chunks() * kDotDepth, int64_t{chunks()} * kDotDepth,
                      offsets.data(), quads.data(), chunks(), w + plane * weights_plane(), outputs[b].start + plane * kDotOutputs, 0, products + plane * kPlane, here, computed(outputs[b].channels), narrow_quads});
          for (int k = 0; k < parts; ++k) {
            DotBlock& pixels = described[k];
            pixels.sums = sums;
            set->products({side, products + k * patches() * kDotOutputs, kPlane, std::min(patches(), here - k * patches()),
                           computed(outputs[b].channels), sums});
            finish(run, b, {}, pixels);
          }
        }
      }
    }
    set->end();
  });
}

}  // namespace bitbranch
