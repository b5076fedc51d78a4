// Channels of several values one after the other.
#pragma once
#include <vector>

#include "step.hpp"

namespace bitbranch {

// The parts that their steps have not written where they belong: each plane of the target is put together from planes
// of the parts, whose channels are shifted to their new places in a pixel.
class Concat final : public Step {
 public:
  // What a part's plane gives to the target's: pixel << left >> right, as far as `mask` has ones.
  struct Piece {
    int plane, part, part_plane, left, right, mask;
  };

  Concat(View target, std::vector<View> parts, const std::vector<Piece>& pieces);
  void run(const Run& run) const override;

 private:
  View target_;
  std::vector<View> parts_;
  std::vector<Piece> pieces_;  // ascending by plane
  std::vector<int> first_;     // piece of each plane that is written, and an end
};

}  // namespace bitbranch
