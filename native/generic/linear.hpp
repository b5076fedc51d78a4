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

// The same for weights of 1, 2 or 4 bits, which are what takes time here: ranks, unpacked as they come. A vector holds
// `8 / Bits` times four ranks of the depth for each of its outputs, one after the other; activations are int8 [depth].
// Products are summed in int16, of few enough quads of the depth, a multiple of `8 / Bits`.
template <int Bits, int Images, int C>
static void linear_packed(const Tile& tile) {
  constexpr int lanes = kBytes / 4, steps = 8 / Bits;
  const char* const x = static_cast<const char*>(tile.activations);
  const uint8_t* w = static_cast<const uint8_t*>(tile.weights);
  const Vector mask = broadcast32(((1 << Bits) - 1) * 0x01010101), ones = broadcast32(0x10001);
  Vector total[Images][C];
  UNROLL for (int i = 0; i < Images; ++i)
    UNROLL for (int c = 0; c < C; ++c) total[i][c] = zero();

  for (int quad = 0; quad < tile.taps;) {
    const int end = tile.taps - quad < tile.flush ? tile.taps : quad + tile.flush;
    Vector sum[Images][C];
    UNROLL for (int i = 0; i < Images; ++i)
      UNROLL for (int c = 0; c < C; ++c) sum[i][c] = zero();
    for (; quad < end; quad += steps) {
      Vector packed[C];
      UNROLL for (int c = 0; c < C; ++c) packed[c] = load(w + c * kBytes);
      UNROLL for (int s = 0; s < steps; ++s) {
        Vector rank[C];
        UNROLL for (int c = 0; c < C; ++c) {
          rank[c] = and_(packed[c], mask);
          packed[c] = shift_right16<Bits>(packed[c]);
        }
        UNROLL for (int i = 0; i < Images; ++i) {
          const Vector a = broadcast32(reinterpret_cast<const int32_t*>(x + i * tile.second)[quad + s]);
          UNROLL for (int c = 0; c < C; ++c) sum[i][c] = add16(sum[i][c], multiply_bytes(rank[c], a));
        }
      }
      w += C * kBytes;
    }
    UNROLL for (int i = 0; i < Images; ++i)
      UNROLL for (int c = 0; c < C; ++c) total[i][c] = add32(total[i][c], multiply_pairs(sum[i][c], ones));
  }

  int32_t* const out = static_cast<int32_t*>(tile.sums);
  UNROLL for (int i = 0; i < Images; ++i)
    UNROLL for (int c = 0; c < C; ++c) store(out + i * tile.stride + c * lanes, total[i][c]);
}
