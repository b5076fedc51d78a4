// AVX-512 F, BW, DQ, VL: 64 bytes, 32 registers.
#include "../kernels.hpp"

#if defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include <immintrin.h>

namespace bitbranch::avx512 {

#include "avx512.inc"

#include "generic.inc"

static const Kernel kernels[] = {
#include "avx512_kernels.inc"
};

}  // namespace bitbranch::avx512

namespace bitbranch {
extern const InstructionSet kAvx512 = INSTRUCTION_SET(avx512, "avx512");
}
#endif
