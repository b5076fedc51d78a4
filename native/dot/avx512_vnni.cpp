// AVX-512 VNNI: 64 products of bytes in an instruction.
#include "kernels.hpp"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include <immintrin.h>

#include <cstring>

namespace bitbranch::dot_avx512_vnni {
#include "avx512.hpp"

constexpr int kDown = 8;
static inline Vector dot(Vector sum, Vector x, Vector w) { return _mm512_dpbusd_epi32(sum, x, w); }
static inline Vector multiply_add(Vector sum, Vector x, Vector w) { return _mm512_dpwssd_epi32(sum, x, w); }

constexpr int kHalfDown = kDown;
static inline Vector half_dot(Vector sum, Vector x, Vector w) { return dot(sum, x, w); }
static inline Vector beside(Vector a, Vector b) { return halves(a, up16(b)); }

#include "generic.hpp"
#include "halves.hpp"
}  // namespace bitbranch::dot_avx512_vnni

namespace bitbranch {
extern const DotSet kDotAvx512Vnni = DOT_SET(dot_avx512_vnni, "avx512_vnni", true, false, false, dot_avx512_vnni::nothing,
                                             dot_avx512_vnni::nothing, dot_avx512_vnni::dot_run);
}
#endif
