#include "interpolate.hpp"

#include <algorithm>
#include <utility>

namespace bitbranch {

namespace {

constexpr int kSpare = 64;  // numbers that vectors may reach beyond a row

// Whether the numbers that each vector reads fit a vector.
bool fits(const std::vector<int32_t>& at, int lanes) {
  for (size_t i = 0; i + lanes <= at.size(); i += lanes)
    if (at[i + lanes - 1] + 1 - at[i] >= lanes) return false;
  return true;
}

bool is_identity(const Interpolate::Axis& axis, int size) {
  if (static_cast<int>(axis.at.size()) != size) return false;
  for (int i = 0; i < size; ++i) {
    const bool first = axis.at[i] == i && axis.weight[i] == 1 && axis.next[i] == 0;
    const bool second = axis.at[i] + 1 == i && axis.weight[i] == 0 && axis.next[i] == 1;
    if (!first && !second) return false;
  }
  return true;
}

}  // namespace

Interpolate::Interpolate(const InstructionSet* isa, View source, bool bytes, Form form, int channels, Axis down,
                         Axis across, Epilogue epilogue, Reals reals, int threads)
    : isa_(isa), source_(source), bytes_(bytes), form_(form), channels_(channels), down_(std::move(down)),
      across_(std::move(across)), moves_(!is_identity(across_, source.width)), epilogue_(std::move(epilogue)),
      reals_(reals), scratch_size_(3 * (size_t(source.width) + kSpare)), scratch_(scratch_size_ * threads) {
  epilogue_.whole = false;
  const size_t count = across_.at.size();
  across_.at.resize(count + kSpare, across_.at.back());
  across_.weight.resize(count + kSpare);
  across_.next.resize(count + kSpare);
  between_ = {across_.at.data(), across_.weight.data(), across_.next.data(), fits(across_.at, isa->width / 4)};
}

// Columns first .. first + count of a row, at their place in a whole row.
const int32_t* Interpolate::row(int64_t image, int64_t channel, int y, int first, int count, int32_t* scratch) const {
  const int64_t pixel = source_.pixel(image, std::min(y, source_.height - 1), 0);
  if (!bytes_) return reinterpret_cast<const int32_t*>(source_.at(channel, pixel));
  isa_->values(source_.at(channel / 2, pixel + first) + channel % 2, form_.is_signed, form_.multiplier, form_.add,
               scratch + first, count);
  return scratch;
}

void Interpolate::fill(int64_t image, int64_t channel, int y, int x, int count, int32_t* scratch, int32_t* out) const {
  const size_t size = scratch_size_ / 3;
  const int first = moves_ ? across_.at[x] : x;
  const int columns = moves_ ? std::min(across_.at[x + count - 1] + 2, source_.width) - first : count;
  const int32_t* const above = row(image, channel, down_.at[y], first, columns, scratch);
  const int32_t* const below = row(image, channel, down_.at[y] + 1, first, columns, scratch + size);
  int32_t* const both = scratch + 2 * size;
  isa_->blend_rows(above + first, down_.weight[y], below + first, down_.next[y], moves_ ? both + first : out, columns);
  if (moves_) isa_->between(between_, both, x, count, out);
}

// By channels, and of these by as many whole rows as an epilogue takes, or pieces of one.
void Interpolate::run(const Run& run) const {
  const int height = epilogue_.height, width = epilogue_.width;
  const int rows = std::max(1, kMaxPixels / width), pieces = (width + kMaxPixels - 1) / kMaxPixels;
  const int64_t bands = int64_t{run.images} * ((height + rows - 1) / rows), blocks = bands * pieces;
  const int group = epilogue_.chunks_per_group(), chunks = (channels_ + kChunk - 1) / kChunk;
  const int64_t groups = (chunks + group - 1) / group, plane = int64_t{height} * width;
  run.pool.parallel(blocks * groups, plain_grain(2 * kMaxPixels * kChunk * group),
                    [&](int part, int64_t begin, int64_t end) {
    alignas(64) int32_t sums[kChunk * kMaxPixels + kSpare] = {};
    int32_t* const scratch = scratch_.data() + scratch_size_ * part;
    Epilogue::Block block;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t index = item % blocks, band = index / pieces;
      const int64_t image = band / ((height + rows - 1) / rows);
      const int y = static_cast<int>(band % ((height + rows - 1) / rows)) * rows;
      const int x = static_cast<int>(index % pieces) * kMaxPixels;
      const int count = std::min(kMaxPixels, width - x), high = std::min(rows, height - y);
      const int64_t first = image * plane + int64_t{y} * width + x;
      const int begin_chunk = static_cast<int>(item / blocks) * group;
      if (!reals_.scale) epilogue_.describe(first, (high - 1) * width + count, block);
      for (int chunk = begin_chunk; chunk < std::min(begin_chunk + group, chunks); ++chunk) {
        const int used = std::min(kChunk, channels_ - chunk * kChunk);
        for (int r = 0; r < used; ++r)
          for (int k = 0; k < high; ++k)
            fill(image, chunk * kChunk + r, y + k, x, count, scratch, sums + r * kMaxPixels + k * width);
        if (!reals_.scale) {
          epilogue_.finish(chunk, sums, kMaxPixels, block);
          continue;
        }
        for (int r = 0; r < used; ++r) {
          const int c = chunk * kChunk + r;
          float* const out = run.outputs[reals_.output] + (image * channels_ + c) * plane + int64_t{y} * width + x;
          isa_->scale(sums + r * kMaxPixels, out, (high - 1) * width + count, reals_.scale[c], reals_.bias[c]);
        }
      }
    }
  });
}

}  // namespace bitbranch
