#include "concat.hpp"

#include <cstring>

namespace bitbranch {

namespace {

template <class Pixel>
void shift_row(const uint8_t* from, uint8_t* to, const Concat::Piece& piece, bool first, int count) {
  const Pixel* __restrict const x = reinterpret_cast<const Pixel*>(from);
  Pixel* __restrict const y = reinterpret_cast<Pixel*>(to);
  const Pixel mask = static_cast<Pixel>(piece.mask);
  const int left = piece.left, right = piece.right;
  if (first && left == 0 && right == 0)
    for (int i = 0; i < count; ++i) y[i] = x[i] & mask;
  else if (first)
    for (int i = 0; i < count; ++i) y[i] = static_cast<Pixel>(x[i] << left >> right) & mask;
  else
    for (int i = 0; i < count; ++i) y[i] |= static_cast<Pixel>(x[i] << left >> right) & mask;
}

}  // namespace

Concat::Concat(View target, std::vector<View> parts, const std::vector<Piece>& pieces)
    : target_(target), parts_(std::move(parts)), pieces_(pieces) {
  for (size_t i = 0; i < pieces_.size(); ++i)
    if (i == 0 || pieces_[i].plane != pieces_[i - 1].plane) first_.push_back(static_cast<int>(i));
  first_.push_back(static_cast<int>(pieces_.size()));
}

void Concat::run(const Run& run) const {
  const int64_t planes = static_cast<int64_t>(first_.size()) - 1, work = int64_t{target_.height} * target_.width;
  run.pool.parallel(run.images * planes, plain_grain(work), [&](int, int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t image = item / planes, plane = item % planes;
      for (int i = first_[plane]; i < first_[plane + 1]; ++i) {
        const Piece& piece = pieces_[i];
        const View& part = parts_[piece.part];
        for (int y = 0; y < target_.height; ++y) {
          const uint8_t* const from = part.at(piece.part_plane, part.pixel(image, y, 0));
          uint8_t* const to = target_.at(piece.plane, target_.pixel(image, y, 0));
          const bool first = i == first_[plane];
          if (target_.pixel_bytes == 4) std::memcpy(to, from, static_cast<size_t>(target_.width) * 4);
          else if (target_.pixel_bytes == 2) shift_row<uint16_t>(from, to, piece, first, target_.width);
          else shift_row<uint8_t>(from, to, piece, first, target_.width);
        }
      }
    }
  });
}

}  // namespace bitbranch
