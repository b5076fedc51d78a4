// The wrapper for 512 bits, shared by VNNI and AMX.
constexpr int kLanes = 16, kAcross = 2, kDown = 12;
using Vector = __m512i;

static inline Vector load(const void* p) { return _mm512_loadu_si512(p); }
static inline void store(void* p, Vector v) { _mm512_storeu_si512(p, v); }
static inline Vector broadcast(const uint8_t* p) {
  int32_t four;
  std::memcpy(&four, p, 4);
  return _mm512_set1_epi32(four);
}
static inline Vector dot(Vector sum, Vector x, Vector w) { return _mm512_dpbusd_epi32(sum, x, w); }
static inline Vector widen(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
static inline Vector multiply_add(Vector sum, Vector x, Vector w) { return _mm512_dpwssd_epi32(sum, x, w); }
static inline Vector load_table(const int8_t* p) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
static inline Vector low_nibbles(Vector a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
static inline Vector high_nibbles(Vector a) { return low_nibbles(_mm512_srli_epi16(a, 4)); }
static inline Vector lookup(Vector table, Vector index) { return _mm512_shuffle_epi8(table, index); }
static inline void nothing() {}
