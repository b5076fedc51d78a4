// Where instructions multiply bytes and add neighbours to 16 bits, sums of small numbers stay there for a while: four of
// the bytes of `DotTile` cost two instructions instead of five. The wrapper adds
//   narrow_dot(sum, x, w): pairs of products added to int16,
//   widen_pairs(sum, narrow): neighbours of int16 added to int32,
// and kNarrowDown (pixels of a register tile).

template <int P, int Across>
ALWAYS_INLINE void narrow_rows(const DotTile& t, int first, int output) {
  const int8_t* weights = t.weights + output / 16 * (kDotChunk / 2) + output % 16 * 4;
  const uint8_t* const x0 = t.x + first * t.step;
  const ptrdiff_t step = t.step;
  int32_t* const to = t.sums + first * kDotOutputs + output;
  const int32_t* start = t.start + first * t.start_step + output;
  int start_step = t.start_step;
  const int chunks = t.chunks, most = t.narrow_quads;  // once: what is written might be anything
  // Of chunk c, `done` quads are summed. Without any chunk, too, the sums are the start.
  for (int c = 0, done = 0; c < chunks || start != to;) {
    Vector sum[P][Across] = {};
    for (int room = most; c < chunks;) {
      const int left = t.quads[c] - done;
      if (left > room && room < most) break;  // whole chunks where they fit: loops of foreseeable length
      const int now = left < room ? left : room;
      const uint8_t* x = x0 + t.offsets[c] + 4 * done;
      const int8_t* w = weights + int64_t{c} * kDotChunk + 64 * done;
      for (int q = 0; q < now; ++q) {
        Vector values[Across];
        UNROLL for (int a = 0; a < Across; ++a)
          values[a] = load(w + (a * kLanes / 16) * (kDotChunk / 2) + a * kLanes % 16 * 4);
        UNROLL for (int p = 0; p < P; ++p) {
          const Vector four = broadcast(x + p * step);
          UNROLL for (int a = 0; a < Across; ++a) sum[p][a] = narrow_dot(sum[p][a], four, values[a]);
        }
        x += 4;
        w += 64;
      }
      room -= now;
      done += now;
      if (done == t.quads[c]) ++c, done = 0;
      if (room == 0) break;
    }
    if (start_step == 0) {
      Vector same[Across];
      UNROLL for (int a = 0; a < Across; ++a) same[a] = load(start + a * kLanes);
      UNROLL for (int p = 0; p < P; ++p)
        UNROLL for (int a = 0; a < Across; ++a)
          store(to + p * kDotOutputs + a * kLanes, widen_pairs(same[a], sum[p][a]));
    } else {
      UNROLL for (int p = 0; p < P; ++p)
        UNROLL for (int a = 0; a < Across; ++a)
          store(to + p * kDotOutputs + a * kLanes, widen_pairs(load(start + p * kDotOutputs + a * kLanes), sum[p][a]));
    }
    start = to;
    start_step = kDotOutputs;
  }
}

static void run(const DotTile& t) {
  if (t.narrow_quads == 0) return dot_run(t);
  in_pieces<kNarrowDown>(t, [&](auto rows, auto across, int first, int output) {
    narrow_rows<decltype(rows)::value, decltype(across)::value>(t, first, output);
  });
}
