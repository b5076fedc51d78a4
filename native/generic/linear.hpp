// Matrix product for outputs of one pixel: lanes are outputs, so one image fills the vectors, and the weights are
// streamed once for every `Images` images. Weights [depth / 2][outputs][2]; activations decoded to int16.
// Included inside the namespace of an instruction set, after its vector wrapper.

template <int WeightBytes, int Images, int C>
static void linear(const Tile& tile) {
  constexpr int lanes = kBytes / 4;
  const char* const x = static_cast<const char*>(tile.activations);
  const uint8_t* w = static_cast<const uint8_t*>(tile.weights);
  Vector sum[Images][C];
  UNROLL for (int i = 0; i < Images; ++i)
    UNROLL for (int c = 0; c < C; ++c) sum[i][c] = zero();

  for (int pair = 0; pair < tile.taps; ++pair) {
    Vector weight[C];
    UNROLL for (int c = 0; c < C; ++c) {
      const uint8_t* const at = w + c * lanes * 2 * WeightBytes;
      weight[c] = WeightBytes == 1 ? widen_signed(at) : load(at);
    }
    UNROLL for (int i = 0; i < Images; ++i) {
      const Vector a = broadcast32(reinterpret_cast<const int32_t*>(x + i * tile.second)[pair]);
      UNROLL for (int c = 0; c < C; ++c) sum[i][c] = add32(sum[i][c], multiply_pairs(weight[c], a));
    }
    w += C * lanes * 2 * WeightBytes;
  }

  int32_t* const out = static_cast<int32_t*>(tile.sums);
  UNROLL for (int i = 0; i < Images; ++i)
    UNROLL for (int c = 0; c < C; ++c) store(out + i * tile.stride + c * lanes, sum[i][c]);
}
