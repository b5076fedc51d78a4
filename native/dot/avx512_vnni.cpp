// AVX-512 VNNI: 64 products of bytes in an instruction.
#include "kernels.hpp"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include <immintrin.h>

#include <cstring>

namespace bitbranch::dot_avx512_vnni {
#include "avx512.hpp"
#include "generic.hpp"
}  // namespace bitbranch::dot_avx512_vnni

namespace bitbranch {
extern const DotSet kDotAvx512Vnni = DOT_SET(dot_avx512_vnni, "avx512_vnni", dot_avx512_vnni::nothing,
                                             dot_avx512_vnni::nothing, dot_avx512_vnni::dot_run);
}
#endif
