// Convolution of any codes up to 8 x 8 bits. Channels come in pairs of bytes per pixel, widened to int16 on load; one
// multiply-add of pairs gives two multiply-accumulates per 32-bit lane, exact.
// Included inside the namespace of an instruction set, after its vector wrapper.

template <bool Signed, int R, int C>
static void bytes(const Tile& tile) {
  constexpr int lanes = kBytes / 4;
  const uint8_t* const x0 = static_cast<const uint8_t*>(tile.activations);
  const int32_t* pairs = static_cast<const int32_t*>(tile.weights);
  Vector sum[R][C];
  UNROLL for (int r = 0; r < R; ++r)
    UNROLL for (int c = 0; c < C; ++c) sum[r][c] = zero();

  for (int tap = 0; tap < tile.taps; ++tap) {
    const uint8_t* const x = x0 + tile.offsets[tap];
    Vector a[C];
    UNROLL for (int c = 0; c < C; ++c) a[c] = Signed ? widen_signed(x + c * kBytes / 2) : widen_unsigned(x + c * kBytes / 2);
    UNROLL for (int r = 0; r < R; ++r) {
      const Vector w = broadcast32(pairs[r]);
      UNROLL for (int c = 0; c < C; ++c) sum[r][c] = add32(sum[r][c], multiply_pairs(a[c], w));
    }
    pairs += R;
  }

  int32_t* const out = static_cast<int32_t*>(tile.sums);
  UNROLL for (int r = 0; r < R; ++r)
    UNROLL for (int c = 0; c < C; ++c) store(out + r * tile.stride + c * lanes, sum[r][c]);
}
