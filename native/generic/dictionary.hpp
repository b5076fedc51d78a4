// Weight-dictionary look-up convolution. Four weights of one output are a word; the sums of its weights over the 16
// subsets of its channels are a 16-byte table, biased by the negative weights so that every entry is >= 0. A nibble
// of activations holds one bit of the word's four channels, so one byte shuffle adds up 4 multiply-accumulates per
// lane and bit. Byte sums are widened to 16 bits before they can pass 255.
// Included inside the namespace of an instruction set, after its vector wrapper.

// Bits 2..4 take one word per tap, used for every bit; 1-bit codes take two words, for the two nibbles of a byte.
template <int Bits, int R, int C>
static void dictionary(const Tile& tile) {
  constexpr int sums_per_output = Bits == 1 ? 1 : Bits;
  constexpr int nibbles = Bits == 1 ? 2 : Bits;
  const uint8_t* x0 = static_cast<const uint8_t*>(tile.activations);
  const uint8_t* words = static_cast<const uint8_t*>(tile.weights);
  const uint8_t* const tables = tile.dictionary;
  uint16_t* const out = static_cast<uint16_t*>(tile.sums);

  int tap = 0;
  do {
    const bool first = tap == 0;
    const int end = tile.taps - tap < tile.flush ? tile.taps : tap + tile.flush;
    Vector sum[R][C][sums_per_output];
    UNROLL for (int r = 0; r < R; ++r)
      UNROLL for (int c = 0; c < C; ++c)
        UNROLL for (int b = 0; b < sums_per_output; ++b) sum[r][c][b] = zero();

    for (; tap < end; ++tap) {
      const uint8_t* x = x0 + tile.offsets[tap];
      Vector nibble[C][nibbles];
      UNROLL for (int c = 0; c < C; ++c) {
        const Vector a = load(x + c * kBytes);
        nibble[c][0] = low_nibbles(a);
        nibble[c][1] = high_nibbles(a);
        if constexpr (Bits >= 3) {
          const Vector s = load(x + tile.second + c * kBytes);
          nibble[c][2] = Bits == 3 ? s : low_nibbles(s);
          if constexpr (Bits == 4) nibble[c][3] = high_nibbles(s);
        }
      }
      UNROLL for (int r = 0; r < R; ++r) {
        const Vector table = load_table(tables + 16 * words[r]);
        if constexpr (Bits == 1) {
          const Vector upper = load_table(tables + 16 * words[R + r]);
          UNROLL for (int c = 0; c < C; ++c) {
            sum[r][c][0] = add8(sum[r][c][0], lookup(table, nibble[c][0]));
            sum[r][c][0] = add8(sum[r][c][0], lookup(upper, nibble[c][1]));
          }
        } else {
          UNROLL for (int c = 0; c < C; ++c)
            UNROLL for (int b = 0; b < Bits; ++b) sum[r][c][b] = add8(sum[r][c][b], lookup(table, nibble[c][b]));
        }
      }
      words += Bits == 1 ? 2 * R : R;
    }

    UNROLL for (int r = 0; r < R; ++r)
      UNROLL for (int c = 0; c < C; ++c) {
        Vector even = even_bytes(sum[r][c][0]), odd = odd_bytes(sum[r][c][0]);
        if constexpr (Bits >= 2) {
          even = add16(even, shift_left16<1>(even_bytes(sum[r][c][1])));
          odd = add16(odd, shift_left16<1>(odd_bytes(sum[r][c][1])));
        }
        if constexpr (Bits >= 3) {
          even = add16(even, shift_left16<2>(even_bytes(sum[r][c][2])));
          odd = add16(odd, shift_left16<2>(odd_bytes(sum[r][c][2])));
        }
        if constexpr (Bits >= 4) {
          even = add16(even, shift_left16<3>(even_bytes(sum[r][c][3])));
          odd = add16(odd, shift_left16<3>(odd_bytes(sum[r][c][3])));
        }
        Vector low, high;
        interleave16(even, odd, low, high);
        uint16_t* const at = out + r * tile.stride + c * kBytes;
        if (!first) {
          low = add16(low, load(at));
          high = add16(high, load(at + kBytes / 2));
        }
        store(at, low);
        store(at + kBytes / 2, high);
      }
  } while (tap < tile.taps);
}
