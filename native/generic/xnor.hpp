// XNOR convolution with carry-save counting. A byte of activations holds bits of the same channels as for a dictionary;
// a weight of -1 flips its channels' bits, one of 0 clears them, so a sum is how many bits are then set, biased by the
// negative weights. Vectors of bits are added as numbers are on paper, digit by digit: 16 taps become vectors of ones,
// twos, fours and eights and one of sixteens, and only the sixteens are counted at once.
// Included inside the namespace of an instruction set, after its vector wrapper.

// Bits set in each byte; where a byte holds two bits of four channels, those of its upper nibble count twice.
template <bool Pairs>
static inline Vector count_set(Vector v) {
  alignas(16) static const uint8_t once[16] = {0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4};
  const Vector low = load_table(once);
  const Vector high = Pairs ? add8(low, low) : low;
  return add8(lookup(low, low_nibbles(v)), lookup(high, high_nibbles(v)));
}

static inline Vector four_times(const uint8_t* bytes) {
  int32_t four;
  __builtin_memcpy(&four, bytes, sizeof four);
  return broadcast32(four);
}

// A tap's bits with an output's weights. An entry of the dictionary holds which bits to flip, after those to keep if
// weights are ternary; both are a byte, four times.
template <bool Ternary>
static inline Vector weighted(Vector x, const uint8_t* dictionary, uint8_t word) {
  const uint8_t* const entry = dictionary + size_t{Ternary ? 8 : 4} * word;
  return Ternary ? keep_and_flip(x, four_times(entry), four_times(entry + 4)) : xor_(x, four_times(entry));
}

template <int Bits, bool Ternary, int R>
static void xnor(const Tile& tile) {
  constexpr int group = 16;
  constexpr bool pairs = Bits > 1;
  constexpr int most = pairs ? 12 : 8;       // that `count_set` gives
  constexpr int flush = 255 / most * group;  // taps whose counts of sixteens fit a byte
  const uint8_t* const dictionary = tile.dictionary;
  uint16_t* const out = static_cast<uint16_t*>(tile.sums);
  Vector even[R], odd[R];  // sums of the even and the odd bytes
  UNROLL for (int r = 0; r < R; ++r) even[r] = odd[r] = zero();

  // Bits 2 and 3 of codes are in a second plane.
  for (int plane = 0; plane < (Bits == 4 ? 2 : 1); ++plane) {
    const uint8_t* const x0 = static_cast<const uint8_t*>(tile.activations) + plane * tile.second;
    const uint8_t* words = static_cast<const uint8_t*>(tile.weights);
    Vector ones[R], twos[R], fours[R], eights[R];
    for (int r = 0; r < R; ++r) ones[r] = twos[r] = fours[r] = eights[r] = zero();
    int tap = 0;
    do {
      const int end = tile.taps - tap < flush ? tile.taps : tap + flush;
      Vector count[R];
      for (int r = 0; r < R; ++r) count[r] = zero();
      for (; tap < end; tap += group) {
        Vector x[group];
        UNROLL for (int i = 0; i < group; ++i)
          x[i] = tap + i < end ? load(x0 + tile.offsets[tap + i]) : zero();  // where no word flips
        for (int r = 0; r < R; ++r, words += group) {
          Vector a = ones[r], b = twos[r], c = fours[r], d = eights[r], two[2], four[2], eight[2];
          UNROLL for (int i = 0; i < group; i += 2) {
            two[i / 2 % 2] = add_bits(a, weighted<Ternary>(x[i], dictionary, words[i]),
                                      weighted<Ternary>(x[i + 1], dictionary, words[i + 1]));
            if (i % 4 == 2) four[i / 4 % 2] = add_bits(b, two[0], two[1]);
            if (i % 8 == 6) eight[i / 8] = add_bits(c, four[0], four[1]);
          }
          count[r] = add8(count[r], count_set<pairs>(add_bits(d, eight[0], eight[1])));
          ones[r] = a, twos[r] = b, fours[r] = c, eights[r] = d;
        }
      }
      UNROLL for (int r = 0; r < R; ++r) {
        Vector e = shift_left16<4>(even_bytes(count[r])), o = shift_left16<4>(odd_bytes(count[r]));
        if (end == tile.taps) {
          // At most 15 times `most`, within a byte.
          Vector rest = add8(count_set<pairs>(twos[r]), shift_left16<1>(count_set<pairs>(fours[r])));
          rest = add8(rest, shift_left16<2>(count_set<pairs>(eights[r])));
          rest = add8(count_set<pairs>(ones[r]), shift_left16<1>(rest));
          e = add16(e, even_bytes(rest));
          o = add16(o, odd_bytes(rest));
        }
        if (plane == 1) e = shift_left16<2>(e), o = shift_left16<2>(o);
        even[r] = add16(even[r], e);
        odd[r] = add16(odd[r], o);
      }
    } while (tap < tile.taps);
  }

  UNROLL for (int r = 0; r < R; ++r) {
    Vector low, high;
    interleave16(even[r], odd[r], low, high);
    uint16_t* const at = out + r * tile.stride;
    store(at, low);
    store(at + kBytes / 2, high);
  }
}
