#include "winograd.hpp"

#include <algorithm>
#include <cstring>

namespace bitbranch {

namespace {
// 0, 1, 2 ..: copied, which is faster than counting.
struct Rows {
  uint8_t at[kDotPixels];
  constexpr Rows() : at() {
    for (int i = 0; i < kDotPixels; ++i) at[i] = static_cast<uint8_t>(i);
  }
};
constexpr Rows kRows;
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

// The products of a batch with the weights of a block: a matrix for each number of a patch.
void DotWinograd::multiply(const Scratch& own, const Batch& batch, int block) const {
  const int64_t bytes = int64_t{chunks()} * kDotDepth;
  const int8_t* const weights = own.weights + (together ? block * weights_bytes() : 0);
  for (int plane = 0; plane < planes(); ++plane) {
    DotTile t{};
    t.x = own.numbers + plane * numbers_plane() + batch.at * bytes;
    t.step = bytes;
    t.offsets = offsets.data();
    t.quads = quads.data();
    t.chunks = chunks();
    t.weights = weights + plane * weights_plane();
    t.start = outputs[block].start + plane * kDotOutputs;
    t.sums = reinterpret_cast<int32_t*>(own.products + plane * kPlane * product_bytes());
    t.pixels = batch.count;
    t.outputs = computed(outputs[block].channels);
    t.narrow_quads = narrow_quads;
    t.half_step = kDotOutputs;
    half ? set->run_half(t) : set->run(t);
  }
}

// The outputs of a batch, as many patches at a time as a tile holds, to the chain.
void DotWinograd::run_batch(const Run& run, const Scratch& own, const Batch& batch, int first_block, int last_block) const {
  constexpr int most = (kBatch + 2) / 3;  // at least three patches are finished at once
  alignas(64) int32_t sums[kDotPixels * kDotOutputs];
  DotBlock pixels[most];
  for (int done = 0, k = 0; done < batch.count; done += patches(), ++k) {
    describe_patches(batch.first + done, std::min(patches(), batch.count - done), pixels[k]);
    pixels[k].sums = sums;
  }
  for (int b = first_block; b < last_block; ++b) {
    for (int done = 0, k = 0; done < batch.count; done += patches(), ++k) fetch_ahead(b, {}, pixels[k]);
    multiply(own, batch, b);
    for (int done = 0, k = 0; done < batch.count; done += patches(), ++k) {
      const auto products = half ? set->products_half : set->products;
      products({side, own.products + done * kDotOutputs * product_bytes(), kPlane, std::min(patches(), batch.count - done),
                computed(outputs[b].channels), sums});
      finish(run, b, {}, pixels[k]);
    }
  }
}

// An item is a group with all blocks, where their weights are held together, or with one.
void DotWinograd::run(const Run& run) const {
  const int64_t all = int64_t{run.images} * rows() * columns(), groups = divide_up(all, group);
  const int items = together ? 1 : blocks();
  const int64_t cost = 64 + int64_t{2} * group * planes() * chunks() * (blocks() / items);
  run.pool.parallel(groups * items, 1 + kWorthWaking / cost, [&](int part, int64_t begin, int64_t end) {
    uint8_t* const memory = scratch + part * scratch_bytes();
    uint8_t* const numbers = memory + weights_bytes() * (together ? blocks() : 1);
    const Scratch own{reinterpret_cast<int8_t*>(memory), numbers, numbers + numbers_bytes()};
    set->begin();
    for (int b = 0; together && begin < end && b < blocks(); ++b) prepare_weights(b, own.weights + b * weights_bytes());
    int64_t prepared = -1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t which = item / items, first = which * group;
      const int count = static_cast<int>(std::min<int64_t>(group, all - first));
      const int block = static_cast<int>(item % items);
      if (which != prepared) prepare_numbers(first, count, own.numbers);
      prepared = which;
      if (!together) prepare_weights(block, own.weights);
      for (int at = 0; at < count; at += kBatch)
        run_batch(run, own, {first + at, at, std::min(kBatch, count - at)}, block, together ? blocks() : block + 1);
    }
    set->end();
  });
}

}  // namespace bitbranch
