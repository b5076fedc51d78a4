// Where instructions multiply bytes and add neighbours to 16 bits, sums of small numbers stay there for a while: four of
// the bytes of `DotTile` cost two instructions instead of five. The wrapper adds
//   narrow_dot(sum, x, w): pairs of products added to int16,
//   widen_pairs(sum, narrow): neighbours of int16 added to int32,
// and kNarrowDown (pixels of a register tile).

template <int P, int Across>
static void narrow_rows(const DotTile& t, int first, int output) {
  const int8_t* weights = t.weights + output / 16 * (kDotChunk / 2) + output % 16 * 4;
  const uint8_t* const x0 = t.x + first * t.step;
  const int32_t* start = t.start + first * t.start_step + output;
  int start_step = t.start_step, held = 0;
  Vector sum[P][Across] = {};
  const auto spill = [&] {
    UNROLL for (int p = 0; p < P; ++p)
      UNROLL for (int a = 0; a < Across; ++a) {
        int32_t* const to = t.sums + (first + p) * kDotOutputs + output + a * kLanes;
        store(to, widen_pairs(load(start + p * start_step + a * kLanes), sum[p][a]));
        sum[p][a] = zero();
      }
    start = t.sums + first * kDotOutputs + output;
    start_step = kDotOutputs;
    held = 0;
  };
  for (int c = 0; c < t.chunks; ++c) {
    const uint8_t* x = x0 + t.offsets[c];
    const int8_t* w = weights + int64_t{c} * kDotChunk;
    for (int left = t.quads[c]; left > 0;) {
      if (held != 0 && held + left > t.narrow_quads) spill();  // whole chunks where they fit: loops of foreseeable length
      const int now = left < t.narrow_quads - held ? left : t.narrow_quads - held;
      for (int q = 0; q < now; ++q) {
        Vector values[Across];
        UNROLL for (int a = 0; a < Across; ++a)
          values[a] = load(w + (a * kLanes / 16) * (kDotChunk / 2) + a * kLanes % 16 * 4);
        UNROLL for (int p = 0; p < P; ++p) {
          const Vector four = broadcast(x + p * t.step);
          UNROLL for (int a = 0; a < Across; ++a) sum[p][a] = narrow_dot(sum[p][a], four, values[a]);
        }
        x += 4;
        w += 64;
      }
      held += now;
      left -= now;
    }
  }
  spill();
}

static void run(const DotTile& t) {
  if (t.narrow_quads == 0) return dot_run(t);
  in_pieces<kNarrowDown>(t, [&](auto rows, auto across, int first, int output) {
    narrow_rows<decltype(rows)::value, decltype(across)::value>(t, first, output);
  });
}
