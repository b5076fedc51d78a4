// AVX-VNNI: the same at 256 bits, for processors without AVX-512.
#include "kernels.hpp"

#if defined(__AVXVNNI__) && defined(__AVX2__)
#include <immintrin.h>

#include <cstring>

namespace bitbranch::dot_avx_vnni {

#include "avx2.hpp"

constexpr int kDown = 6;
static inline Vector dot(Vector sum, Vector x, Vector w) { return _mm256_dpbusd_avx_epi32(sum, x, w); }
static inline Vector multiply_add(Vector sum, Vector x, Vector w) { return _mm256_dpwssd_avx_epi32(sum, x, w); }

constexpr int kHalfDown = kDown;
static inline Vector half_dot(Vector sum, Vector x, Vector w) { return dot(sum, x, w); }
static inline Vector beside(Vector a, Vector b) { return halves(a, up16(b)); }

#include "generic.hpp"
#include "halves.hpp"
}  // namespace bitbranch::dot_avx_vnni

namespace bitbranch {
extern const DotSet kDotAvxVnni =
    DOT_SET(dot_avx_vnni, "avx_vnni", true, false, false, dot_avx_vnni::nothing, dot_avx_vnni::nothing, dot_avx_vnni::dot_run);
}
#endif
