#include "steps.hpp"

#include <algorithm>
#include <cstring>

namespace bitbranch {

namespace {
// Tiles of a deep convolution that are summed together, and the chunks of weights that are expanded for few and for
// many of them: sums and weights share the first cache.
constexpr int kTogether = 8, kFewTiles = 4, kSlabOfFew = 8, kSlab = 16;
}  // namespace

int DotChained::block_channels(int block) const { return std::min(kDotOutputs, channels - block * kDotOutputs); }

void DotStep::run(const Run& run) const {
  int64_t runs = 1, length = run.images;
  if (walk.kind == DotWalk::Kind::flat) length = int64_t{run.images} * walk.rows * walk.pitch;
  if (walk.kind == DotWalk::Kind::rows) runs = int64_t{run.images} * walk.height, length = walk.width;
  const int64_t per_run = divide_up(length, kDotPixels);
  const Tiles tiles{0, per_run, length, runs * per_run};
  run.pool.parallel(tiles.count * blocks(), 1 + kWorthWaking / cost(), [&](int part, int64_t begin, int64_t end) {
    set->begin();
    run_tiles(run, part, tiles, begin, end, {});
    set->end();
  });
}

void DotStep::run_rows(const Run& run, int part, int64_t first, int64_t count, const DotBand& band) const {
  const int64_t per_run = divide_up(walk.width, kDotPixels);
  const Tiles tiles{first, per_run, walk.width, count * per_run};
  run_tiles(run, part, tiles, 0, tiles.count * blocks(), band);
}

DotStep::Span DotStep::span_of(const Tiles& tiles, int64_t tile) {
  const int64_t first = tile % tiles.per_run * kDotPixels;
  return {tile, tiles.first_run + tile / tiles.per_run, first,
          static_cast<int>(std::min<int64_t>(kDotPixels, tiles.length - first))};
}

// The blocks of a tile follow one another, so that its pixels are read and written whole.
void DotStep::run_tiles(const Run& run, int part, const Tiles& tiles, int64_t begin, int64_t end,
                        const DotBand& band) const {
  alignas(64) int32_t sums[kDotPixels * kDotOutputs];
  Gathered gathered;
  DotBlock pixels;
  pixels.sums = sums;
  int64_t described = -1;
  for (int64_t item = begin; item < end; ++item) {
    const int block = static_cast<int>(item % blocks());
    const Span span = span_of(tiles, item / blocks());
    if (span.tile != described) describe(span, pixels);
    described = span.tile;
    if (pixels.count == 0) continue;
    if (cost() >= kWorthFetching) fetch_ahead(block, band, pixels);
    fill(block, part, span, band, gathered, pixels);
    finish(run, block, band, pixels);
  }
}

void DotStep::describe(const Span& span, DotBlock& block) const {
  block.count = block.segments = 0;
  int64_t image = span.first;
  int y = 0, x = 0, pitch = 1, rows = 1;  // of images: a pixel each
  if (walk.kind == DotWalk::Kind::flat) {
    pitch = walk.pitch, rows = walk.rows;
    const int64_t row = span.first / pitch;
    image = row / rows, y = static_cast<int>(row % rows), x = static_cast<int>(span.first % pitch);
  } else if (walk.kind == DotWalk::Kind::rows) {
    pitch = walk.width, rows = walk.height;
    image = span.run / rows, y = static_cast<int>(span.run % rows), x = static_cast<int>(span.first);
  }
  for (int i = 0; i < span.count;) {
    const int here = std::min(span.count - i, pitch - x);
    const int used = y < walk.height ? std::min(here, walk.width - x) : 0;
    if (used > 0) {
      block.segment[block.segments++] = {used, image, y, x};
      for (int k = 0; k < used; ++k) block.row[block.count++] = static_cast<uint8_t>(i + k);
    }
    i += here;
    x = 0;
    if (++y == rows) {
      y = 0;
      ++image;
    }
  }
}

void DotChained::places(const DotOp& op, const DotBand& band, const DotBlock& pixels, int offset, void** at) const {
  const DotBand& where = op.kind == DotOp::Kind::store && !is_window() ? band : DotBand{};
  const ptrdiff_t step = op.view.step * walk.step_x;
  for (int k = 0; k < pixels.segments; ++k) {
    const DotBlock::Segment& s = pixels.segment[k];
    uint8_t* first = where.at(op.view, s.image, int64_t{s.y} * walk.step_y + walk.first_y, int64_t{s.x} * walk.step_x + walk.first_x) + offset;
    for (int i = 0; i < s.count; ++i, first += step) *at++ = first;
  }
}

void DotChained::fetch_ahead(int block, const DotBand& band, const DotBlock& pixels) const {
  void* at[kDotPixels];
  DotView added;
  for (const DotOp& op : chain) {
    const bool to_band = op.kind == DotOp::Kind::store && band.memory != nullptr;  // it is in the cache
    if ((op.kind != DotOp::Kind::add && op.kind != DotOp::Kind::store) || to_band || op.view.is_at(added)) continue;
    if (op.kind == DotOp::Kind::add) added = op.view;
    const int size = op.view.narrow ? 2 : 4, bytes = size * computed(block_channels(block));
    places(op, band, pixels, first_channel(block) * size, at);
    for (int i = 0; i < pixels.count; ++i)
      for (int b = 0; b < bytes; b += 64) __builtin_prefetch(static_cast<const uint8_t*>(at[i]) + b, 1);
  }
}

namespace {
DotJump jump(const DotOp& line, int block) {
  return {line.limits ? line.limits + block * kDotOutputs : nullptr, line.ranks};
}
}  // namespace

void DotChained::finish(const Run& run, int block, const DotBand& band, DotBlock& pixels) const {
  const int first = first_channel(block), existing = block_channels(block);
  // The last block may write the padding behind the last channel too, in whole vectors.
  const bool whole = first % kDotOutputs == 0 && first + existing == channels;
  DotRows rows{pixels.sums, pixels.count, pixels.row, existing};
  void *targets[kDotPixels], *numbers[kDotPixels];
  DotView added;  // where these numbers are: a sum often takes its summand's place
  const auto target_y = [&](const DotBlock::Segment& s) { return int64_t{s.y} * walk.step_y + walk.first_y; };
  const auto target_x = [&](const DotBlock::Segment& s) { return int64_t{s.x} * walk.step_x + walk.first_x; };
  for (const DotOp& op : chain) {
    const bool is_bytes =
        op.kind == DotOp::Kind::compare || op.kind == DotOp::Kind::line || op.kind == DotOp::Kind::fine_line;
    rows.channels = whole && !op.view.exact ? computed(existing) : existing;
    if (op.kind == DotOp::Kind::scale) {
      rows.channels = existing;
      const int64_t size = int64_t{op.view.height} * op.view.width;
      int n = 0;
      for (int k = 0; k < pixels.segments; ++k) {
        const DotBlock::Segment& s = pixels.segment[k];
        float* at = run.outputs[op.output] + (s.image * op.view.channels + first) * size + target_y(s) * op.view.width + target_x(s);
        for (int i = 0; i < s.count; ++i, at += walk.step_x) targets[n++] = at;
      }
      set->scale(rows, op.slope + block * kDotOutputs, op.intercept + block * kDotOutputs,
                 reinterpret_cast<float* const*>(targets), size);
      continue;
    }
    if (is_bytes) places(op, band, pixels, first, targets);
    else if (op.kind != DotOp::Kind::requantize && (!op.view.is_at(added) || band.memory != nullptr))
      places(op, band, pixels, first * (op.view.narrow ? 2 : 4), numbers);
    switch (op.kind) {
      case DotOp::Kind::requantize:
        set->requantize(rows, op.multiplier + block * kDotOutputs, op.shift + block * kDotOutputs,
                        op.offset + block * kDotOutputs, op.lo, op.hi, op.narrow);
        break;
      case DotOp::Kind::add:
        set->add(rows, numbers, op.view.narrow, op.lo, op.hi);
        added = op.view;
        break;
      case DotOp::Kind::store: set->store(rows, op.view.narrow, numbers); break;
      case DotOp::Kind::compare:
        set->compare(rows, op.limits + int64_t{block} * op.count * kDotOutputs, op.count, op.table, op.code,
                     reinterpret_cast<uint8_t* const*>(targets));
        break;
      case DotOp::Kind::line:
        set->line(rows, op.slope + block * kDotOutputs, op.intercept + block * kDotOutputs, op.count, jump(op, block),
                  op.code, reinterpret_cast<uint8_t* const*>(targets));
        break;
      case DotOp::Kind::fine_line:
        set->fine_line(rows, op.fine_slope + block * kDotOutputs, op.fine_intercept + block * kDotOutputs, op.count,
                       jump(op, block), op.code, reinterpret_cast<uint8_t* const*>(targets));
        break;
      case DotOp::Kind::scale: break;
    }
  }
}

void DotConvolution::expand(const Outputs& o, int first, int chunks, int8_t* out) const {
  const int64_t packed = int64_t{kDotChunk} * bits / 8;
  set->expand(bits, tables, o.weights + first * packed, static_cast<int>(chunks * packed / 64), out);
}

// Where the weights of all blocks do not fit the second cache, channels are outside and pixels inside; and the depth is
// cut, so that a piece of a block's weights is expanded once in the first cache for several tiles.
void DotConvolution::run_tiles(const Run& run, int part, const Tiles& tiles, int64_t begin, int64_t end,
                               const DotBand& band) const {
  if (blocks_together()) {
    for (int b = 0; b < blocks() && bits < 8 && begin < end; ++b) expand(outputs[b], 0, outputs[b].chunks, expanded(b, part));
    if (half) return run_halves(part, tiles, band);
    return DotStep::run_tiles(run, part, tiles, begin, end, band);
  }
  alignas(64) int32_t sums[kTogether][kDotPixels * kDotOutputs];
  Gathered gathered;
  DotBlock pixels[kTogether];
  Span spans[kTogether];
  const int most = piece != 0 ? std::min(kTogether, slots) : kTogether;
  int64_t first = -1;
  int count = 0;
  for (int64_t item = begin; item < end; item += count) {
    const int block = static_cast<int>(item / tiles.count);
    const int64_t tile = item % tiles.count;
    const int here = static_cast<int>(std::min({int64_t{most}, tiles.count - tile, end - item}));
    if (tile != first || here != count)
      for (int i = 0; i < here; ++i) {
        spans[i] = span_of(tiles, tile + i);
        pixels[i].sums = sums[i];
        describe(spans[i], pixels[i]);
      }
    first = tile;
    count = here;
    const Outputs& o = outputs[block];
    const int slab = count <= kFewTiles ? kSlabOfFew : kSlab;
    DotTile each[kTogether];
    for (int i = 0; i < count; ++i) {
      each[i] = place(o, part, spans[i], gathered, pixels[i]);
      each[i].chunks = 0;
    }
    int8_t* const slab_weights = scratch + int64_t{part} * scratch_chunks * kDotChunk;
    for (int done = 0; done < o.chunks || done == 0; done += slab) {
      const int chunks = std::min(slab, o.chunks - done);
      if (bits < 8) expand(o, done, chunks, slab_weights);
      for (int i = 0; i < count; ++i) {
        if (pixels[i].count == 0) continue;
        DotTile& t = each[i];
        t.offsets += t.chunks;
        t.quads += t.chunks;
        t.chunks = chunks;
        t.weights = bits < 8 ? slab_weights : reinterpret_cast<const int8_t*>(o.weights) + int64_t{done} * kDotChunk;
        set->run(t);
        t.start = pixels[i].sums;
        t.start_step = kDotOutputs;
      }
    }
    for (int i = 0; i < count; ++i)
      if (pixels[i].count != 0) finish(run, block, band, pixels[i]);
  }
}

// Straight to the band, where what lies behind a row is overwritten by the next.
void DotConvolution::run_halves(int part, const Tiles& tiles, const DotBand& band) const {
  const DotView& to = chain[0].view;
  Gathered gathered;
  DotBlock pixels;
  for (int64_t tile = 0; tile < tiles.count; ++tile) {
    const Span span = span_of(tiles, tile);
    if (piece != 0) describe(span, pixels);
    uint8_t* const first = band.at(to, span.run / walk.height, span.run % walk.height, span.first);
    for (int b = 0; b < blocks(); ++b) {
      const Outputs& o = outputs[b];
      DotTile t = place(o, part, span, gathered, pixels);
      t.weights = bits == 8 ? reinterpret_cast<const int8_t*>(o.weights) : expanded(b, part);
      t.sums = reinterpret_cast<int32_t*>(first + o.first * sizeof(int16_t));
      t.half_step = to.step / static_cast<ptrdiff_t>(sizeof(int16_t));
      set->run_half(t);
    }
  }
}

DotTile DotConvolution::place(const Outputs& o, int part, const Span& span, Gathered& gathered,
                              const DotBlock& pixels) const {
  DotTile t{};
  switch (walk.kind) {
    case DotWalk::Kind::flat:
      t.x = source.base + span.first * source.step;
      t.step = source.step;
      break;
    case DotWalk::Kind::rows:
      t.x = source.at(span.run / walk.height, span.run % walk.height * stride_y, span.first * stride_x);
      t.step = source.step * stride_x;
      break;
    case DotWalk::Kind::images:
      t.x = source.at(span.first, 0, 0);
      t.step = source.image_bytes();
      break;
  }
  t.offsets = o.offsets;
  if (piece != 0) {
    t.x = gather(o, part, span, gathered, pixels);
    t.step = kDotDepth;
    t.offsets = gathered_offsets.data();
  }
  t.quads = o.quads;
  t.chunks = o.chunks;
  t.start = o.start;
  t.sums = pixels.sums;
  t.pixels = span.count;
  t.outputs = computed(o.channels);
  t.narrow_quads = narrow_quads;
  return t;
}

void DotConvolution::fill(int block, int part, const Span& span, const DotBand&, Gathered& gathered,
                          DotBlock& pixels) const {
  const Outputs& o = outputs[block];
  DotTile t = place(o, part, span, gathered, pixels);
  t.weights = bits == 8 ? reinterpret_cast<const int8_t*>(o.weights) : expanded(block, part);
  set->run(t);
}

const uint8_t* DotConvolution::gather(const Outputs& o, int part, const Span& span, Gathered& gathered,
                                      const DotBlock& pixels) const {
  const int64_t wanted = span.tile * lists + o.list, slot = span.tile % slots;
  uint8_t* const out = gather_scratch + (part * slots + slot) * gathered_chunks * (kDotPixels * kDotDepth);
  if (gathered.at[slot] == wanted) return out;
  gathered.at[slot] = wanted;
  const uint8_t* x[kDotPixels];
  int n = 0;
  for (int k = 0; k < pixels.segments; ++k) {
    const DotBlock::Segment& s = pixels.segment[k];
    const uint8_t* at = source.at(s.image, int64_t{s.y} * stride_y, int64_t{s.x} * stride_x);
    for (int i = 0; i < s.count; ++i, at += source.step * stride_x) x[n++] = at;
  }
  set->gather({x, pixels.row, n, o.offsets, o.pieces, piece, out});
  return out;
}

void DotDepthwiseConvolution::fill(int block, int, const Span& span, const DotBand&, Gathered&, DotBlock& pixels) const {
  DotDepthwise d{};
  const bool flat = walk.kind == DotWalk::Kind::flat;
  d.x = flat ? source.base + span.first * source.step
             : source.at(span.run / walk.height, span.run % walk.height * stride_y, span.first * stride_x);
  d.x += block * kDotOutputs;
  d.step = flat ? source.step : source.step * stride_x;
  d.offsets = offsets;
  d.taps = taps;
  d.weights = weights + int64_t{block} * taps * kDotOutputs;
  d.start = start + block * kDotOutputs;
  d.sums = pixels.sums;
  d.pixels = span.count;
  set->depthwise(d);
}

void DotWindow::interpolate(int block, const DotBand& band, DotBlock& pixels) const {
  DotBlend b{};
  b.size = number_bytes();
  b.step = source.step;
  b.channels = std::min(kDotOutputs, channels - block * kDotOutputs);
  const int each = across[0].weight[0] + across[0].weight[1];
  b.sums = pixels.sums;
  b.row = pixels.row;
  for (int k = 0; k < pixels.segments; ++k, b.row += b.count) {
    const DotBlock::Segment& s = pixels.segment[k];
    const DotBetween& rows = down[s.y];
    for (int a = 0; a < 2; ++a) {
      b.rows[a] = band.at(source, s.image, rows.at[a], 0) + block * kDotOutputs * b.size;
      b.down[a] = rows.weight[a];
    }
    const uint32_t weights = static_cast<uint32_t>(each) * static_cast<uint32_t>(rows.weight[0] + rows.weight[1]);
    b.add = static_cast<int32_t>(0u - static_cast<uint32_t>(zero) * weights);
    b.across = &across[s.x];
    b.count = s.count;
    set->blend(b);
  }
}

namespace {
constexpr int kMembers = 64;

// The windows of `count` pixels of a row, so many at a time as have the same members: `call(first, members)`, more than
// once for windows of more than kMembers. `at(y, x)` is where a pixel of the source lies.
template <class Window, class At, class Call>
void each_window(const Window& w, int y, int x, int count, const At& at, const Call& call) {
  const auto there = [](int from, int dilation, int members, int size) {  // members begin .. end lie in 0 .. size
    const int begin = from < 0 ? (dilation - 1 - from) / dilation : 0;
    const int end = from < size ? std::min(members, (size - 1 - from) / dilation + 1) : 0;
    return std::pair{begin, end};
  };
  ptrdiff_t offsets[kMembers];
  const int top = y * w.stride_y - w.top;
  const auto [above, below] = there(top, w.dilation_y, w.kernel_y, w.source.height);
  for (int i = 0, windows; i < count; i += windows) {
    const int left = (x + i) * w.stride_x - w.left;
    const auto [before, behind] = there(left, w.dilation_x, w.kernel_x, w.source.width);
    const bool whole = before == 0 && behind == w.kernel_x;
    const int last = w.source.width - 1 - (w.kernel_x - 1) * w.dilation_x;  // where a whole window may begin
    windows = whole ? std::min(count - i, (last - left) / w.stride_x + 1) : 1;
    if (above >= below || before >= behind) continue;
    DotMembers m{at(top + above * w.dilation_y, left + before * w.dilation_x), offsets, 0, w.source.step * w.stride_x,
                 windows, false};
    for (int a = 0; a < below - above; ++a)
      for (int b = 0; b < behind - before; ++b) {
        if (m.count == kMembers) {
          call(i, m);
          m.count = 0;
          m.more = true;
        }
        offsets[m.count++] = (int64_t{a} * w.dilation_y * w.source.pitch + b * w.dilation_x) * w.source.step;
      }
    call(i, m);
  }
}
}  // namespace

void DotWindow::fill(int block, int, const Span&, const DotBand& band, Gathered&, DotBlock& pixels) const {
  if (kind == Kind::between) return interpolate(block, band, pixels);
  const int first = block * kDotOutputs * number_bytes();
  const uint8_t* row = pixels.row;
  for (int k = 0; k < pixels.segments; row += pixels.segment[k++].count) {
    const DotBlock::Segment& s = pixels.segment[k];
    int32_t* const sums = pixels.sums + row[0] * kDotOutputs;  // a piece's rows follow one another
    if (kind == Kind::sum) std::memset(sums, 0, sizeof(int32_t) * kDotOutputs * s.count);
    each_window(*this, s.y, s.x, s.count, [&](int y, int x) { return band.at(source, s.image, y, x) + first; },
                [&](int i, const DotMembers& m) {
                  int32_t* const out = sums + i * kDotOutputs;
                  if (kind == Kind::sum) set->sum_members(m, number_bytes(), zero, out);
                  else half ? set->max_half(m, out) : set->max_sums(m, source.narrow, out);
                });
  }
}

void DotBanded::run(const Run& run) const {
  const DotWalk &rows = window->walk, &below = convolution->walk;
  const int64_t bands = divide_up(rows.height, band_rows);
  run.pool.parallel(run.images * bands, 1, [&](int part, int64_t begin, int64_t end) {
    convolution->set->begin();
    for (int64_t item = begin; item < end; ++item) {
      const int64_t image = item / bands;
      const int first = static_cast<int>(item % bands) * band_rows, count = std::min(band_rows, rows.height - first);
      const int reach = (window->kernel_y - 1) * window->dilation_y + 1;
      const int from = std::max(0, first * window->stride_y - window->top);
      const int to = std::min(below.height, (first + count - 1) * window->stride_y - window->top + reach);
      const DotBand band{scratch + part * scratch_bytes, from};
      convolution->run_rows(run, part, image * below.height + from, to - from, band);
      window->run_rows(run, part, image * rows.height + first, count, band);
    }
    convolution->set->end();
  });
}

void DotBytes::run(const Run& run) const {
  const int64_t rows = int64_t{run.images} * target.height;
  run.pool.parallel(rows, plain_grain(int64_t{target.width} * target.channels * kernel_y), [&](int, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t image = row / target.height;
      const int at_y = static_cast<int>(row % target.height);
      uint8_t* const out = target.at(image, at_y, 0);
      const auto at = [&](int y, int x) { return source.at(image, y, x); };
      // Pixels that are repeated have the same window.
      for (int x = 0; x < target.width; x += factor_x > 1 ? 1 : target.width)
        each_window(*this, at_y / factor_y, x / factor_x, factor_x > 1 ? 1 : target.width, at,
                    [&](int i, const DotMembers& m) { set->max_bytes(m, target.channels, out + (x + i) * target.step, target.step); });
    }
  });
}

void DotEncode::run(const Run& run) const {
  const int width = target.width, height = target.height, quads = (target.channels + 3) / 4;
  const int64_t plane = int64_t{height} * width;
  // Short rows are encoded together: alone they would not fill the vectors.
  constexpr int piece = 2048;
  const int columns = std::min(width, piece), rows = std::max(1, piece / width);
  const int64_t bands = divide_up(height, rows);
  run.pool.parallel(run.images * bands, plain_grain(int64_t{rows} * width * target.channels), [&](int, int64_t begin, int64_t end) {
    alignas(64) uint8_t bytes[4][piece], mixed[4 * piece];
    const uint8_t* const each[4] = {bytes[0], bytes[1], bytes[2], bytes[3]};
    std::memset(bytes, 0, sizeof bytes);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t image = item / bands;
      const int top = static_cast<int>(item % bands) * rows, here = std::min(rows, height - top);
      for (int left = 0; left < width; left += columns) {
        const int count = std::min(columns, width - left);
        for (int quad = 0; quad < quads; ++quad) {
          for (int k = 0; k < 4 && 4 * quad + k < target.channels; ++k) {
            const int c = 4 * quad + k;
            const int64_t from = (image * target.channels + c) * plane + int64_t{top} * width + left;
            encode(run, c, from, bytes[k], here * count);
          }
          const int used = static_cast<int>(std::min<ptrdiff_t>(4, target.step));  // of one to four channels all
          set->interleave(each, used, mixed, here * count);
          for (int row = 0; row < here; ++row) {
            uint8_t* const out = target.at(image, top + row, left) + 4 * quad;
            const uint8_t* const from = mixed + used * row * count;
            if (target.step <= 4) std::memcpy(out, from, size_t{1} * used * count);
            else for (int x = 0; x < count; ++x) std::memcpy(out + x * target.step, from + 4 * x, 4);
          }
        }
      }
    }
  });
}

}  // namespace bitbranch
