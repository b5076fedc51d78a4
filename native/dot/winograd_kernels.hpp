// Winograd's transforms for the wrapper of generic.hpp, once for patches of 4 x 4 pixels (side 2) and of 5 x 5 (side 3):
// points 0, 1, -1, infinity, and with side 3 also 2. Each works along one axis on whatever has `plus` and `minus`.

struct Bytes {
  Vector v;
  friend Bytes operator+(Bytes a, Bytes b) { return {add8(a.v, b.v)}; }
  friend Bytes operator-(Bytes a, Bytes b) { return {sub8(a.v, b.v)}; }
};
struct Numbers {
  Vector v;
  static constexpr int kOutputs = kLanes;
  using Stored = int32_t;
  friend Numbers operator+(Numbers a, Numbers b) { return {add32(a.v, b.v)}; }
  friend Numbers operator-(Numbers a, Numbers b) { return {sub32(a.v, b.v)}; }
  Numbers ninth() const { return {multiply32(v, splat(0x38E38E39))}; }  // of a multiple: times the inverse modulo 2^32
  void store_quarter(int32_t* out) const { store(out, quarter(v)); }
};

template <int Side>
struct Winograd;

template <>
struct Winograd<2> {
  static constexpr int kSide = 2, kSize = 4;
  static inline void pixels(const Bytes (&d)[4], Bytes (&out)[4]) {
    out[0] = d[0] - d[2];
    out[1] = d[1] + d[2];
    out[2] = d[2] - d[1];
    out[3] = d[1] - d[3];
  }
  static inline void weights(const Bytes (&g)[3], Bytes (&out)[4]) {
    const Bytes ends = g[0] + g[2];
    out[0] = g[0] + g[0];
    out[1] = ends + g[1];
    out[2] = ends - g[1];
    out[3] = g[2] + g[2];
  }
  template <class N>
  static inline void outputs(const N (&m)[4], N (&out)[2]) {
    out[0] = m[0] + (m[1] + m[2]);
    out[1] = (m[1] - m[2]) - m[3];
  }
  template <class N>
  static inline N to_quarters(N a) {
    return a;
  }
};

template <>
struct Winograd<3> {
  static constexpr int kSide = 3, kSize = 5;
  static inline void pixels(const Bytes (&d)[5], Bytes (&out)[5]) {
    const Bytes odd = d[3] - d[1], near = d[2] - d[1], even = d[0] - d[2];
    out[0] = (even + even) + odd;
    out[1] = (d[1] + d[2]) - odd;
    out[2] = (near - odd) + (near + near);
    out[3] = odd;
    out[4] = (d[4] - d[2]) - (odd + odd);
  }
  // Each row is taken as few times as leaves the largest products small; `outputs` takes it the other times.
  static inline void weights(const Bytes (&g)[3], Bytes (&out)[5]) {
    const Bytes ends = g[0] + g[2], twice = g[1] + (g[2] + g[2]);
    out[0] = g[0] + (g[0] + g[0]);
    out[1] = ends + g[1];
    out[2] = ends - g[1];
    out[3] = g[0] + (twice + twice);
    out[4] = g[2] + (g[2] + g[2]);
  }
  template <class N>
  static inline void outputs(const N (&m)[5], N (&out)[3]) {
    const N thrice = m[1] + (m[1] + m[1]), sum = thrice + m[2], twice = m[3] + m[3], far = twice + m[4];
    out[0] = (m[0] + m[3]) + sum;
    out[1] = (thrice - m[2]) + twice;
    out[2] = sum + (far + far);
  }
  template <class N>
  static inline N to_quarters(N a) {
    return a.ninth();
  }
};

// Columns that two patches share are transformed once.
template <class W>
static void transform_patches(const DotPatches& t) {
  constexpr int n = W::kSize, bytes = sizeof(Vector);
  for (int c = 0; c < t.bytes; c += bytes) {
    Bytes columns[n][n];  // of which the first index is the column
    const auto read = [&](int column, Bytes(&to)[n]) {
      Bytes d[n];
      const uint8_t* const x = t.x + column * t.step + c;
      UNROLL for (int i = 0; i < n; ++i) d[i].v = load(x + i * t.row);
      W::pixels(d, to);
    };
    UNROLL for (int j = 0; j < n - W::kSide; ++j) read(j, columns[j]);
    for (int k = 0; k < t.count; ++k) {
      UNROLL for (int j = n - W::kSide; j < n; ++j) read(k * W::kSide + j, columns[j]);
      uint8_t* const out = t.out + int64_t{k} * t.bytes + c;
      UNROLL for (int i = 0; i < n; ++i) {
        Bytes line[n], result[n];
        UNROLL for (int j = 0; j < n; ++j) line[j] = columns[j][i];
        W::pixels(line, result);
        UNROLL for (int j = 0; j < n; ++j)
          store(out + (i * n + j) * t.plane, add8(result[j].v, splat8(t.add[i * n + j])));
      }
      UNROLL for (int j = 0; j < n - W::kSide; ++j)
        UNROLL for (int i = 0; i < n; ++i) columns[j][i] = columns[j + W::kSide][i];
    }
  }
}

template <class W>
static void transform_kernels(const DotKernels& t) {
  constexpr int n = W::kSize, bytes = sizeof(Vector);
  for (int at = 0; at < kDotChunk; at += bytes) {
    Bytes columns[3][n];
    UNROLL for (int j = 0; j < 3; ++j) {
      Bytes g[3];
      UNROLL for (int i = 0; i < 3; ++i) g[i].v = load(t.taps + (i * 3 + j) * kDotChunk + at);
      W::weights(g, columns[j]);
    }
    UNROLL for (int i = 0; i < n; ++i) {
      const Bytes line[3] = {columns[0][i], columns[1][i], columns[2][i]};
      Bytes result[n];
      W::weights(line, result);
      UNROLL for (int j = 0; j < n; ++j) store(t.out + (i * n + j) * t.plane + at, result[j].v);
    }
  }
}

template <class W, class N>
static void transform_products(const DotProducts& t) {
  constexpr int n = W::kSize, side = W::kSide, patches = kDotPixels / (side * side);
  for (int k = 0; k < t.count; ++k)
    for (int a = 0; a < t.outputs; a += N::kOutputs) {
      const auto* const from = static_cast<const typename N::Stored*>(t.products) + k * kDotOutputs + a;
      N rows[side][n];  // of which the second index is the column
      UNROLL for (int j = 0; j < n; ++j) {
        N m[n], down[side];
        UNROLL for (int i = 0; i < n; ++i) m[i].v = load(from + (i * n + j) * t.plane);
        W::outputs(m, down);
        UNROLL for (int i = 0; i < side; ++i) rows[i][j] = down[i];
      }
      UNROLL for (int i = 0; i < side; ++i) {
        N across[side];
        W::outputs(rows[i], across);
        int32_t* const out = t.sums + ((i * patches + k) * side) * kDotOutputs + a;
        UNROLL for (int j = 0; j < side; ++j) W::to_quarters(across[j]).store_quarter(out + j * kDotOutputs);
      }
    }
}

static void patches(const DotPatches& t) {
  if (t.side == 2) transform_patches<Winograd<2>>(t);
  else transform_patches<Winograd<3>>(t);
}

static void kernels(const DotKernels& t) {
  if (t.side == 2) transform_kernels<Winograd<2>>(t);
  else transform_kernels<Winograd<3>>(t);
}

static void products(const DotProducts& t) {
  if (t.side == 2) transform_products<Winograd<2>, Numbers>(t);
  else transform_products<Winograd<3>, Numbers>(t);
}
