// Depthwise convolution of codes in bytes: every channel has taps of its own. Taps come in pairs: the bytes of a pair
// are interleaved, so that one multiply-add of neighbouring bytes takes both taps of both channels of a pixel, and no
// product is wasted. The planner gives so small numbers that no sum can pass int16.
// Included inside the namespace of an instruction set, after its vector wrapper.

template <int C>
static void depthwise(const Tile& tile) {
  constexpr int pixels = kBytes / 2;  // of a vector of channel pairs
  const int32_t* weights = static_cast<const int32_t*>(tile.weights);  // [pair of channels][pair of taps]
  for (int pair = 0; pair < kChunk / 2; ++pair) {
    const uint8_t* const x = static_cast<const uint8_t*>(tile.activations) + pair * tile.second;
    Vector low[C], high[C];
    UNROLL for (int c = 0; c < C; ++c) low[c] = high[c] = zero();
    for (int tap = 0; tap < tile.taps; tap += 2) {
      const uint8_t *const a = x + tile.offsets[tap], *const b = x + tile.offsets[tap + 1];
      const Vector w = broadcast32(*weights++);
      UNROLL for (int c = 0; c < C; ++c) {
        const Vector first = load(a + c * kBytes), second = load(b + c * kBytes);
        low[c] = add16(low[c], multiply_bytes(interleave_low8(first, second), w));
        high[c] = add16(high[c], multiply_bytes(interleave_high8(first, second), w));
      }
    }
    int16_t* const out = static_cast<int16_t*>(tile.sums) + 2 * pair * ptrdiff_t{tile.stride};
    UNROLL for (int c = 0; c < C; ++c) {
      store(out + c * pixels, even_halves(low[c], high[c]));
      store(out + tile.stride + c * pixels, odd_halves(low[c], high[c]));
    }
  }
}
