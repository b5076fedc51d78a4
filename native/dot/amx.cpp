// AMX int8: a tile of 16 pixels by 64 bytes times a tile of 64 bytes by 16 outputs in one instruction.
#include "kernels.hpp"

#if defined(__AMX_INT8__) && defined(__AVX512VNNI__)
#include <immintrin.h>

#include <cstring>

namespace bitbranch::dot_amx {
#include "avx512.hpp"

constexpr int kDown = 12;
static inline Vector dot(Vector sum, Vector x, Vector w) { return _mm512_dpbusd_epi32(sum, x, w); }
static inline Vector multiply_add(Vector sum, Vector x, Vector w) { return _mm512_dpwssd_epi32(sum, x, w); }

#include "generic.hpp"
constexpr void (*run_half)(const DotTile&) = nullptr;
constexpr void (*products_half)(const DotProducts&) = nullptr;
constexpr void (*max_half)(const DotMembers&, int32_t*) = nullptr;

struct alignas(64) Configuration {
  uint8_t palette = 1, start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// In memory for good: gcc's intrinsic does not tell the compiler that all of it is read.
static const Configuration configuration;

static void begin() { _tile_loadconfig(&configuration); }
static void end() { _tile_release(); }

// Tiles 0..3 are sums (two halves of the pixels by two of the outputs), 4 and 5 pixels, 6 and 7 weights.
static void run(const DotTile& t) {
  if (t.pixels <= 4) return dot_run(t);  // most rows of the tiles would be empty
  constexpr int half = kDotChunk / 2, down = 16 * kDotOutputs;
  const int start_bytes = t.start_step * 4;
  const int8_t* w = t.weights;
  const uint8_t* const low = t.x;
  const uint8_t* const high = t.x + 16 * t.step;
  _tile_loadd(0, t.start, start_bytes);
  _tile_loadd(1, t.start + 16, start_bytes);
  if (t.pixels > 16) {
    _tile_loadd(2, t.start + 16 * t.start_step, start_bytes);
    _tile_loadd(3, t.start + 16 * t.start_step + 16, start_bytes);
    for (int c = 0; c < t.chunks; ++c, w += kDotChunk) {
      _tile_loadd(4, low + t.offsets[c], t.step);
      _tile_loadd(6, w, 64);
      _tile_dpbusd(0, 4, 6);
      _tile_loadd(7, w + half, 64);
      _tile_dpbusd(1, 4, 7);
      _tile_loadd(5, high + t.offsets[c], t.step);
      _tile_dpbusd(2, 5, 6);
      _tile_dpbusd(3, 5, 7);
    }
    _tile_stored(2, t.sums + down, 4 * kDotOutputs);
    _tile_stored(3, t.sums + down + 16, 4 * kDotOutputs);
  } else {
    for (int c = 0; c < t.chunks; ++c, w += kDotChunk) {
      _tile_loadd(4, low + t.offsets[c], t.step);
      _tile_loadd(6, w, 64);
      _tile_dpbusd(0, 4, 6);
      _tile_loadd(7, w + half, 64);
      _tile_dpbusd(1, 4, 7);
    }
  }
  _tile_stored(0, t.sums, 4 * kDotOutputs);
  _tile_stored(1, t.sums + 16, 4 * kDotOutputs);
}
}  // namespace bitbranch::dot_amx

namespace bitbranch {
extern const DotSet kDotAmx = DOT_SET(dot_amx, "amx", true, true, false, dot_amx::begin, dot_amx::end, dot_amx::run);
}
#endif
