// AVX-512 with VBMI: byte look-ups in tables of 64 entries.
#include "../kernels.hpp"

#if defined(__AVX512VBMI__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include <immintrin.h>

namespace bitbranch::avx512vbmi {

#include "avx512.inc"

static inline Vector load_table64(const uint8_t* p) { return _mm512_loadu_si512(p); }
// Entry `index & 63` of the table.
static inline Vector lookup64(Vector table, Vector index) { return _mm512_permutexvar_epi8(index, table); }
// Keeps the compiler from renaming an accumulator in every turn of a loop.
static inline Vector stay(Vector v) {
  asm("" : "+v"(v));
  return v;
}

#include "generic.inc"
#include "../generic/sextets.hpp"

static const Kernel kernels[] = {
    {"sextets", 2, 8, kBytes, sextets<8, 1, 8>},
    {"sextets", 2, 4, 2 * kBytes, sextets<4, 2, 8>},
    {"sextets64", 1, 8, kBytes, sextets<8, 1, 64>},
    {"sextets64", 1, 4, 2 * kBytes, sextets<4, 2, 64>},
    {"sextets64", 2, 8, kBytes, sextets<8, 1, 64>},
    {"sextets64", 2, 4, 2 * kBytes, sextets<4, 2, 64>},
#include "avx512_kernels.inc"
};

}  // namespace bitbranch::avx512vbmi

namespace bitbranch {
extern const InstructionSet kAvx512Vbmi = INSTRUCTION_SET(avx512vbmi, "avx512vbmi");
}
#endif
