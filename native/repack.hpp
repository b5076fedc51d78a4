// Copies of codes in the form and geometry that a reader wants.
#pragma once
#include <vector>

#include "step.hpp"

namespace bitbranch {

// A copy in another form, with other pads, or split into the phases of a stride: pixel (y, x) of phase (py, px) is
// pixel (stride_y * y + py, stride_x * x + px). Planes of the target: [plane of the form][phase].
class Repack final : public Step {
 public:
  struct Phase {
    int y, x;
  };

  const InstructionSet* isa = nullptr;
  View source, target;  // target.height, width: of one phase
  Form from, to;
  int channels = 0;  // those of the last chunk beyond it become 0 in bit-planes, as dictionary words expect
  int stride_y = 1, stride_x = 1;
  std::vector<Phase> phases;

  void run(const Run& run) const override;

 private:
  void gather_pixels(const Run& run, int plane_count) const;
  void copy_row(int plane, int64_t first, const View& out, int64_t at, int count) const;
  void convert_row(int chunk, int64_t first, const View& out, int64_t at, int count) const;
};

// Codes to int16 or int8 values in the order channel, row, column, for a linear layer.
class Flatten final : public Step {
 public:
  explicit Flatten(const Form& form);

  View source;
  int channels = 0;
  uint8_t* target = nullptr;  // [images][depth]
  int depth = 0;
  bool narrow = false;  // int8

  void run(const Run& run) const override;

 private:
  template <class Value>
  void run_as(const Run& run) const;

  Form form_;
  std::vector<int16_t> values_;  // what a byte of a plane means: [planes of a unit][256][channels of a unit]
};

}  // namespace bitbranch
