// Integers to a stream: multiplied, shifted, saturated, and added to another stream.
// Included inside the namespace of an instruction set, after its vector wrapper.

template <bool Adds, class Acc>
static void rescale_each(const Rescale& r, const Acc* x, const int32_t* other, int32_t* y, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    int64_t v = (static_cast<int64_t>(x[i]) * r.multiplier + r.offset) >> r.shift;
    v = v < r.lo ? r.lo : v;
    int32_t sum = static_cast<int32_t>(v > r.hi ? r.hi : v);
    if constexpr (Adds) {
      sum += other[i];
      sum = sum < r.sum_lo ? r.sum_lo : sum;
      sum = sum > r.sum_hi ? r.sum_hi : sum;
    }
    y[i] = sum;
  }
}

static inline Vector load_wide(const int32_t* p) { return load(p); }
static inline Vector load_wide(const int16_t* p) { return widen32(p); }

// Shifted numbers that fit int32, in vectors.
template <bool Adds, class Acc>
static void rescale_row(const Rescale& r, const Acc* x, const int32_t* other, int32_t* y, int64_t count) {
  constexpr int lanes = kBytes / 4;
  const int64_t whole = r.narrow && r.shift <= 32 ? count / lanes * lanes : 0;
  const Vector lo = broadcast32(static_cast<int32_t>(r.lo)), hi = broadcast32(static_cast<int32_t>(r.hi));
  const Vector least = broadcast32(r.sum_lo), greatest = broadcast32(r.sum_hi);
  for (int64_t i = 0; i < whole; i += lanes) {
    Vector v = clamp32(shifted_products(load_wide(x + i), r.multiplier, r.offset, r.shift), lo, hi);
    if constexpr (Adds) v = clamp32(add32(v, load(other + i)), least, greatest);
    store(y + i, v);
  }
  rescale_each<Adds>(r, x, other, y, whole, count);
}

template <class Acc>
static void rescale(const Rescale& r, const Acc* x, const int32_t* other, int32_t* y, int64_t count) {
  (other ? rescale_row<true, Acc> : rescale_row<false, Acc>)(r, x, other, y, count);
}
