// The dictionary with words of six activation bits: 3 channels of 2 bits or 6 of 1 bit share a byte, a word's table has
// an entry for each of the 64 bytes, the sum of its weights times the channels' ranks. One look-up does all bits.
// Included inside the namespace of an instruction set, after its vector wrapper with 64-entry tables.

// A word is stored so that its table lies `Step` bytes times that away: eight times its number where that fits a byte,
// since a processor's addresses count in steps of up to 8, and else its number.
template <int R, int C, int Step>
static void sextets(const Tile& tile) {
  const uint8_t* const x0 = static_cast<const uint8_t*>(tile.activations);
  const uint8_t* words = static_cast<const uint8_t*>(tile.weights);
  const uint8_t* const tables = tile.dictionary;
  // Byte sums are added as 16-bit numbers, and their odd bytes by themselves: even = all - 256 * odd in the end.
  Vector all[R][C], odd[R][C];
  UNROLL for (int r = 0; r < R; ++r)
    UNROLL for (int c = 0; c < C; ++c) all[r][c] = odd[r][c] = zero();

  for (int tap = 0; tap < tile.taps;) {
    const int end = tile.taps - tap < tile.flush ? tile.taps : tap + tile.flush;
    Vector sum[R][C];
    UNROLL for (int r = 0; r < R; ++r)
      UNROLL for (int c = 0; c < C; ++c) sum[r][c] = zero();
    for (; tap < end; ++tap) {
      const uint8_t* const x = x0 + tile.offsets[tap];
      Vector a[C];
      UNROLL for (int c = 0; c < C; ++c) a[c] = load(x + c * kBytes);
      UNROLL for (int r = 0; r < R; ++r) {
        const Vector table = load_table64(tables + size_t{Step} * words[r]);
        UNROLL for (int c = 0; c < C; ++c) sum[r][c] = stay(add8(sum[r][c], lookup64(table, a[c])));
      }
      words += R;
    }
    UNROLL for (int r = 0; r < R; ++r)
      UNROLL for (int c = 0; c < C; ++c) {
        all[r][c] = add16(all[r][c], sum[r][c]);
        odd[r][c] = add16(odd[r][c], odd_bytes(sum[r][c]));
      }
  }

  uint16_t* const out = static_cast<uint16_t*>(tile.sums);
  UNROLL for (int r = 0; r < R; ++r)
    UNROLL for (int c = 0; c < C; ++c) {
      Vector low, high;
      interleave16(subtract16(all[r][c], shift_left16<8>(odd[r][c])), odd[r][c], low, high);
      store(out + r * tile.stride + c * kBytes, low);
      store(out + r * tile.stride + c * kBytes + kBytes / 2, high);
    }
}
