// The wrapper for 512 bits but for the products, shared by all sets of that width.
constexpr int kLanes = 16, kAcross = 2;
using Vector = __m512i;

static inline Vector load(const void* p) { return _mm512_loadu_si512(p); }
static inline void store(void* p, Vector v) { _mm512_storeu_si512(p, v); }
static inline Vector broadcast(const uint8_t* p) {
  int32_t four;
  std::memcpy(&four, p, 4);
  return _mm512_set1_epi32(four);
}
static inline Vector widen(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
static inline Vector load_table(const int8_t* p) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
static inline Vector low_nibbles(Vector a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
static inline Vector high_nibbles(Vector a) { return low_nibbles(_mm512_srli_epi16(a, 4)); }
static inline Vector lookup(Vector table, Vector index) { return _mm512_shuffle_epi8(table, index); }
static inline Vector zero() { return _mm512_setzero_si512(); }
static inline Vector splat(int32_t x) { return _mm512_set1_epi32(x); }
static inline Vector splat8(int x) { return _mm512_set1_epi8(static_cast<char>(x)); }
static inline Vector add8(Vector a, Vector b) { return _mm512_add_epi8(a, b); }
static inline Vector sub8(Vector a, Vector b) { return _mm512_sub_epi8(a, b); }
static inline Vector sub32(Vector a, Vector b) { return _mm512_sub_epi32(a, b); }
static inline Vector quarter(Vector a) { return _mm512_srai_epi32(a, 2); }
static inline Vector multiply32(Vector a, Vector b) { return _mm512_mullo_epi32(a, b); }
static inline Vector add32(Vector a, Vector b) { return _mm512_add_epi32(a, b); }
static inline Vector splat16(int x) { return _mm512_set1_epi16(static_cast<int16_t>(x)); }
static inline Vector add16(Vector a, Vector b) { return _mm512_add_epi16(a, b); }
static inline Vector sub16(Vector a, Vector b) { return _mm512_sub_epi16(a, b); }
static inline Vector multiply16(Vector a, Vector b) { return _mm512_mullo_epi16(a, b); }
static inline Vector up16(Vector a) { return _mm512_slli_epi32(a, 16); }
static inline Vector down16(Vector a) { return _mm512_srli_epi32(a, 16); }
static inline Vector halves(Vector low, Vector high) { return _mm512_mask_blend_epi16(0xAAAAAAAA, low, high); }
static inline Vector larger16(Vector a, Vector b) { return _mm512_max_epi16(a, b); }
static inline Vector half_low(Vector a) { return _mm512_srai_epi32(up16(a), 16); }
static inline Vector half_high(Vector a) { return _mm512_srai_epi32(a, 16); }
static inline Vector quarter_low(Vector a) { return _mm512_srai_epi32(up16(a), 18); }
static inline Vector quarter_high(Vector a) { return _mm512_srai_epi32(a, 18); }  // of a multiple: what is below is cut off
static inline Vector larger(Vector a, Vector b) { return _mm512_max_epi32(a, b); }
static inline Vector larger8(Vector a, Vector b) { return _mm512_max_epu8(a, b); }
static inline Vector smaller(Vector a, Vector b) { return _mm512_min_epi32(a, b); }
static inline Vector widen16(const int16_t* p) {
  return _mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
static inline void narrow16(int16_t* p, Vector v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(v));
}
static inline void narrow8(uint8_t* p, Vector v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v));
}
static inline Vector count_reached(Vector count, Vector v, Vector bar) {
  return _mm512_mask_sub_epi32(count, _mm512_cmpge_epi32_mask(v, bar), count, _mm512_set1_epi32(-1));
}
static inline Vector add_reached(Vector sum, Vector v, Vector bar, Vector summand) {
  return _mm512_mask_add_epi32(sum, _mm512_cmpge_epi32_mask(v, bar), sum, summand);
}
static inline void requantize_row(int32_t* v, const int64_t* multiplier, const int64_t* shift, const int64_t* offset,
                                  int32_t lo, int32_t hi) {
  const __m256i low = _mm256_set1_epi32(lo), high = _mm256_set1_epi32(hi);
  for (int c = 0; c < 32; c += 8) {
    const __m512i x = _mm512_cvtepi32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(v + c)));
    const __m512i y = _mm512_add_epi64(_mm512_mul_epi32(x, load(multiplier + c)), load(offset + c));
    const __m256i saturated = _mm512_cvtsepi64_epi32(_mm512_srav_epi64(y, load(shift + c)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(v + c), _mm256_min_epi32(_mm256_max_epi32(saturated, low), high));
  }
}

// Products of the even and of the odd channels, whose low and high halves become one vector. Turning by the shift leaves
// the wanted bits in the low half; turning by 32 less leaves them in the high one.
static inline bool requantize_narrow(const DotRows& rows, const int64_t* multiplier, const int64_t* shift,
                                     const int64_t* offset, int32_t lo, int32_t hi) {
  const Vector even = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14), odd = _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15);
  const Vector low = splat(lo), high = splat(hi);
  for (int part = 0; part < 32; part += 16) {
    const auto pick = [&](const int64_t* from, Vector which) {
      return _mm512_permutex2var_epi64(load(from + part), which, load(from + part + 8));
    };
    const Vector m0 = pick(multiplier, even), m1 = pick(multiplier, odd), o0 = pick(offset, even), o1 = pick(offset, odd);
    const Vector s0 = pick(shift, even), s1 = _mm512_sub_epi64(pick(shift, odd), _mm512_set1_epi64(32));
    for (int i = 0; i < rows.count; ++i) {
      int32_t* const v = rows.sums + rows.row[i] * 32 + part;
      const Vector x = load(v);
      const Vector a = _mm512_rorv_epi64(_mm512_add_epi64(_mm512_mul_epi32(x, m0), o0), s0);
      const Vector b = _mm512_rorv_epi64(_mm512_add_epi64(_mm512_mul_epi32(_mm512_srli_epi64(x, 32), m1), o1), s1);
      store(v, smaller(larger(_mm512_mask_mov_epi32(a, 0xAAAA, b), low), high));
    }
  }
  return true;
}

// Nothing is gained here by comparing 32 channels at once.
template <int Count>
static inline bool compare_whole(const DotRows&, const int32_t*, DotCode, uint8_t* const*) {
  return false;
}

struct Line {
  __m512 slope, intercept, last;
  Line(const float* a, const float* b, float n)
      : slope(_mm512_loadu_ps(a)), intercept(_mm512_loadu_ps(b)), last(_mm512_set1_ps(n)) {}
  Vector operator()(Vector v) const {
    const __m512 y = _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(v), slope), intercept);
    return _mm512_cvttps_epi32(_mm512_min_ps(_mm512_max_ps(y, _mm512_setzero_ps()), last));
  }
};
// The same in double precision, half a vector at a time.
struct FineLine {
  __m512d slope[2], intercept[2], last;
  FineLine(const double* a, const double* b, double n)
      : slope{_mm512_loadu_pd(a), _mm512_loadu_pd(a + 8)},
        intercept{_mm512_loadu_pd(b), _mm512_loadu_pd(b + 8)},
        last(_mm512_set1_pd(n)) {}
  __m256i half(__m256i v, int k) const {
    const __m512d y = _mm512_add_pd(_mm512_mul_pd(_mm512_cvtepi32_pd(v), slope[k]), intercept[k]);
    return _mm512_cvttpd_epi32(_mm512_min_pd(_mm512_max_pd(y, _mm512_setzero_pd()), last));
  }
  Vector operator()(Vector v) const {
    const __m256i low = half(_mm512_castsi512_si256(v), 0), high = half(_mm512_extracti64x4_epi64(v, 1), 1);
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
  }
};
static inline void nothing() {}
