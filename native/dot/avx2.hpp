// The wrapper for 256 bits but for the products, shared by all sets of that width.

constexpr int kLanes = 8, kAcross = 2;
using Vector = __m256i;

static inline Vector load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
static inline void store(void* p, Vector v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
static inline Vector broadcast(const uint8_t* p) {
  int32_t four;
  std::memcpy(&four, p, 4);
  return _mm256_set1_epi32(four);
}
static inline Vector widen(const uint8_t* p) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
static inline Vector load_table(const int8_t* p) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
static inline Vector low_nibbles(Vector a) { return _mm256_and_si256(a, _mm256_set1_epi8(15)); }
static inline Vector high_nibbles(Vector a) { return low_nibbles(_mm256_srli_epi16(a, 4)); }
static inline Vector lookup(Vector table, Vector index) { return _mm256_shuffle_epi8(table, index); }
static inline Vector zero() { return _mm256_setzero_si256(); }
static inline Vector splat(int32_t x) { return _mm256_set1_epi32(x); }
static inline Vector splat8(int x) { return _mm256_set1_epi8(static_cast<char>(x)); }
static inline Vector add8(Vector a, Vector b) { return _mm256_add_epi8(a, b); }
static inline Vector sub8(Vector a, Vector b) { return _mm256_sub_epi8(a, b); }
static inline Vector sub32(Vector a, Vector b) { return _mm256_sub_epi32(a, b); }
static inline Vector quarter(Vector a) { return _mm256_srai_epi32(a, 2); }
static inline Vector multiply32(Vector a, Vector b) { return _mm256_mullo_epi32(a, b); }
static inline Vector add32(Vector a, Vector b) { return _mm256_add_epi32(a, b); }
static inline Vector splat16(int x) { return _mm256_set1_epi16(static_cast<int16_t>(x)); }
static inline Vector add16(Vector a, Vector b) { return _mm256_add_epi16(a, b); }
static inline Vector sub16(Vector a, Vector b) { return _mm256_sub_epi16(a, b); }
static inline Vector multiply16(Vector a, Vector b) { return _mm256_mullo_epi16(a, b); }
static inline Vector up16(Vector a) { return _mm256_slli_epi32(a, 16); }
static inline Vector down16(Vector a) { return _mm256_srli_epi32(a, 16); }
static inline Vector halves(Vector low, Vector high) { return _mm256_blend_epi16(low, high, 0xAA); }
static inline Vector larger16(Vector a, Vector b) { return _mm256_max_epi16(a, b); }
static inline Vector half_low(Vector a) { return _mm256_srai_epi32(up16(a), 16); }
static inline Vector half_high(Vector a) { return _mm256_srai_epi32(a, 16); }
static inline Vector quarter_low(Vector a) { return _mm256_srai_epi32(up16(a), 18); }
static inline Vector quarter_high(Vector a) { return _mm256_srai_epi32(a, 18); }  // of a multiple: what is below is cut off
static inline Vector larger(Vector a, Vector b) { return _mm256_max_epi32(a, b); }
static inline Vector larger8(Vector a, Vector b) { return _mm256_max_epu8(a, b); }
static inline Vector smaller(Vector a, Vector b) { return _mm256_min_epi32(a, b); }
static inline Vector widen16(const int16_t* p) {
  return _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
// The low halves of the numbers, then the low bytes: what is above is cut off, as in a conversion.
static inline __m128i low_halves(Vector v) {
  const Vector kept = _mm256_and_si256(v, _mm256_set1_epi32(0xffff));
  return _mm_packus_epi32(_mm256_castsi256_si128(kept), _mm256_extracti128_si256(kept, 1));
}
static inline void narrow16(int16_t* p, Vector v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), low_halves(v)); }
static inline void narrow8(uint8_t* p, Vector v) {
  const __m128i kept = _mm_and_si128(low_halves(v), _mm_set1_epi16(255));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(kept, kept));
}
static inline Vector count_reached(Vector count, Vector v, Vector bar) {
  return _mm256_add_epi32(count, _mm256_add_epi32(_mm256_cmpgt_epi32(bar, v), _mm256_set1_epi32(1)));
}
static inline Vector add_reached(Vector sum, Vector v, Vector bar, Vector summand) {
  return _mm256_add_epi32(sum, _mm256_andnot_si256(_mm256_cmpgt_epi32(bar, v), summand));
}
// There is no arithmetic shift of 64 bits: with the sign bit turned it is a logical one of a number that is 2^63 higher.
static inline void requantize_row(int32_t* v, const int64_t* multiplier, const int64_t* shift, const int64_t* offset,
                                  int32_t lo, int32_t hi) {
  for (int c = 0; c < 32; c += 4) {
    const Vector x = _mm256_cvtepi32_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(v + c)));
    const Vector y = _mm256_add_epi64(_mm256_mul_epi32(x, load(multiplier + c)), load(offset + c));
    const Vector s = load(shift + c), sign = _mm256_set1_epi64x(INT64_MIN);
    const Vector z = _mm256_sub_epi64(_mm256_srlv_epi64(_mm256_xor_si256(y, sign), s), _mm256_srlv_epi64(sign, s));
    alignas(32) int64_t wide[4];
    store(wide, z);
    for (int k = 0; k < 4; ++k) {
      const int64_t w = wide[k] < lo ? lo : wide[k];
      v[c + k] = static_cast<int32_t>(w > hi ? hi : w);
    }
  }
}

// Products of the even and of the odd channels, whose low and high halves become one vector: the wanted bits, which begin
// at the shift, go down to bit 0 or up to bit 32. What a logical shift lacks is above them.
static inline bool requantize_narrow(const DotRows& rows, const int64_t* multiplier, const int64_t* shift,
                                     const int64_t* offset, int32_t lo, int32_t hi) {
  const Vector low = splat(lo), high = splat(hi);
  for (int part = 0; part < 32; part += 8) {
    const auto even = [&](const int64_t* from) {
      return _mm256_permute4x64_epi64(_mm256_unpacklo_epi64(load(from + part), load(from + part + 4)), 0xD8);
    };
    const auto odd = [&](const int64_t* from) {
      return _mm256_permute4x64_epi64(_mm256_unpackhi_epi64(load(from + part), load(from + part + 4)), 0xD8);
    };
    const Vector m0 = even(multiplier), m1 = odd(multiplier), o0 = even(offset), o1 = odd(offset);
    const Vector down = even(shift), up = _mm256_sub_epi64(_mm256_set1_epi64x(32), odd(shift));
    for (int i = 0; i < rows.count; ++i) {
      int32_t* const v = rows.sums + rows.row[i] * 32 + part;
      const Vector x = load(v);
      const Vector a = _mm256_srlv_epi64(_mm256_add_epi64(_mm256_mul_epi32(x, m0), o0), down);
      const Vector b = _mm256_sllv_epi64(_mm256_add_epi64(_mm256_mul_epi32(_mm256_srli_epi64(x, 32), m1), o1), up);
      store(v, smaller(larger(_mm256_blend_epi32(a, b, 0xAA), low), high));
    }
  }
  return true;
}

// Whether 32 channels of every row were compared at once: numbers of limits that are not reached are packed as bytes.
template <int Count>
static inline bool compare_whole(const DotRows& rows, const int32_t* limits, DotCode code, uint8_t* const* target) {
  const Vector order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const Vector all = _mm256_set1_epi8(static_cast<char>((Count << code.shift) + code.add));
  const __m128i shift = _mm_cvtsi32_si128(code.shift);
  for (int i = 0; i < rows.count; ++i) {
    const int32_t* const v = rows.sums + rows.row[i] * 32;
    Vector missed[4];
    for (int part = 0; part < 4; ++part) {
      const Vector sums = load(v + 8 * part);
      missed[part] = _mm256_cmpgt_epi32(load(limits + 8 * part), sums);
      for (int k = 1; k < Count; ++k)
        missed[part] = _mm256_add_epi32(missed[part], _mm256_cmpgt_epi32(load(limits + k * 32 + 8 * part), sums));
    }
    const Vector low = _mm256_packs_epi32(missed[0], missed[1]), high = _mm256_packs_epi32(missed[2], missed[3]);
    const Vector bytes = _mm256_packs_epi16(_mm256_sll_epi16(low, shift), _mm256_sll_epi16(high, shift));
    store(target[i], _mm256_add_epi8(_mm256_permutevar8x32_epi32(bytes, order), all));
  }
  return true;
}

struct Line {
  __m256 slope, intercept, last;
  Line(const float* a, const float* b, float n)
      : slope(_mm256_loadu_ps(a)), intercept(_mm256_loadu_ps(b)), last(_mm256_set1_ps(n)) {}
  Vector operator()(Vector v) const {
    const __m256 y = _mm256_add_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(v), slope), intercept);
    return _mm256_cvttps_epi32(_mm256_min_ps(_mm256_max_ps(y, _mm256_setzero_ps()), last));
  }
};
// The same in double precision, half a vector at a time.
struct FineLine {
  __m256d slope[2], intercept[2], last;
  FineLine(const double* a, const double* b, double n)
      : slope{_mm256_loadu_pd(a), _mm256_loadu_pd(a + 4)},
        intercept{_mm256_loadu_pd(b), _mm256_loadu_pd(b + 4)},
        last(_mm256_set1_pd(n)) {}
  __m128i half(__m128i v, int k) const {
    const __m256d y = _mm256_add_pd(_mm256_mul_pd(_mm256_cvtepi32_pd(v), slope[k]), intercept[k]);
    return _mm256_cvttpd_epi32(_mm256_min_pd(_mm256_max_pd(y, _mm256_setzero_pd()), last));
  }
  Vector operator()(Vector v) const {
    const __m128i low = half(_mm256_castsi256_si128(v), 0), high = half(_mm256_extracti128_si256(v, 1), 1);
    return _mm256_set_m128i(high, low);
  }
};
static inline void nothing() {}
