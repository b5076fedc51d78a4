// Convolution of codes in bytes. Channels come in pairs of bytes per pixel.
// Included inside the namespace of an instruction set, after its vector wrapper.

// Any codes up to 8 x 8 bits: bytes are widened to int16 on load; one multiply-add of pairs gives two
// multiply-accumulates per 32-bit lane, exact.

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
    UNROLL for (int c = 0; c < C; ++c) {
      const uint8_t* const at = x + c * kBytes / 2;
      a[c] = Signed ? widen_signed(at) : widen_unsigned(at);
    }
    UNROLL for (int r = 0; r < R; ++r) {
      const Vector w = broadcast32(pairs[r]);
      UNROLL for (int c = 0; c < C; ++c) sum[r][c] = add32(sum[r][c], multiply_pairs(a[c], w));
    }
    pairs += R;
  }

  if (tile.narrow) {
    int16_t* const out = static_cast<int16_t*>(tile.sums);
    UNROLL for (int r = 0; r < R; ++r)
      UNROLL for (int c = 0; c < C; c += 2)
        store(out + r * tile.stride + c * lanes, narrow32(sum[r][c], sum[r][c + 1]));
    return;
  }
  int32_t* const out = static_cast<int32_t*>(tile.sums);
  UNROLL for (int r = 0; r < R; ++r)
    UNROLL for (int c = 0; c < C; ++c) store(out + r * tile.stride + c * lanes, sum[r][c]);
}

// Few bits: products of unsigned bytes and int8 weights are summed in int16, twice as many per vector. The planner
// gives so few taps, and so small numbers, that neither a pair nor the sum can pass int16.
template <int R, int C>
static void bytes16(const Tile& tile) {
  const uint8_t* const x0 = static_cast<const uint8_t*>(tile.activations);
  const int32_t* pairs = static_cast<const int32_t*>(tile.weights);  // each pair of int8 twice
  Vector sum[R][C];
  UNROLL for (int r = 0; r < R; ++r)
    UNROLL for (int c = 0; c < C; ++c) sum[r][c] = zero();

  for (int tap = 0; tap < tile.taps; ++tap) {
    const uint8_t* const x = x0 + tile.offsets[tap];
    Vector a[C];
    UNROLL for (int c = 0; c < C; ++c) a[c] = load(x + c * kBytes);
    UNROLL for (int r = 0; r < R; ++r) {
      const Vector w = broadcast32(pairs[r]);
      UNROLL for (int c = 0; c < C; ++c) sum[r][c] = add16(sum[r][c], multiply_bytes(a[c], w));
    }
    pairs += R;
  }

  int16_t* const out = static_cast<int16_t*>(tile.sums);
  UNROLL for (int r = 0; r < R; ++r)
    UNROLL for (int c = 0; c < C; ++c) store(out + r * tile.stride + c * (kBytes / 2), sum[r][c]);
}
