// Products of signed bytes, for activations that are not: 128 times the weights' sums goes into the start.
// Included behind generic.hpp.

static void run(const DotTile& t) {
  Vector extra[kParts];
  UNROLL for (int a = 0; a < kParts; ++a) extra[a] = zero();
  const Vector lowest = of_bytes(vdupq_n_u8(0x80));
  for (int c = 0; c < t.chunks; ++c)
    UNROLL for (int half = 0; half < 2; ++half) {
      const int8_t* w = t.weights + int64_t{c} * kDotChunk + half * (kDotChunk / 2);
      for (int q = 0; q < t.quads[c]; ++q, w += 64)
        UNROLL for (int a = 0; a < kParts / 2; ++a)
          extra[half * kParts / 2 + a] = dot(extra[half * kParts / 2 + a], lowest, load(w + 16 * a));
    }
  alignas(64) int32_t start[kDotPixels * kDotOutputs];
  const int rows = t.start_step ? (t.pixels + 3) / 4 * 4 : 1;  // four at a time are computed
  for (int p = 0; p < rows; ++p)
    UNROLL for (int a = 0; a < kParts; ++a)
      store(start + p * kDotOutputs + a * kLanes, vsubq_s32(load(t.start + p * t.start_step + a * kLanes), extra[a]));
  DotTile moved = t;
  moved.start = start;
  dot_run(moved);
}
