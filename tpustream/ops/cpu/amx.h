// The integer dot products of dot.h on matrix tiles (Intel AMX), from 8 rows on twice as fast or more.
//
// The layout of a panel is a tile's own: 16 quads of inputs by 16 channels by 4 bytes.
#pragma once

#if defined(__AMX_INT8__) && defined(__linux__)

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

#include "dot.h"

namespace tpustream {

constexpr int kAmxRows = 32;       // rows that meet a panel together, in two tiles of 16
constexpr int64_t kTileQuads = 16;

// Asks the kernel for tile registers, once; no if it keeps them.
inline bool AmxUsable() {
  static const bool granted = [] {
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return granted;
}

// Configures this thread's tiles, and puts back what was there: XLA's own products use them too.
class AmxTiles {
 public:
  AmxTiles() {
    struct alignas(64) Config {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    _tile_storeconfig(before_);
    asm volatile("" : : "r"(&config) : "memory");  // GCC 12 thinks that only the first bytes are read
    _tile_loadconfig(&config);
  }
  ~AmxTiles() {
    asm volatile("" : : "r"(before_) : "memory");
    _tile_loadconfig(before_);
  }
  AmxTiles(const AmxTiles&) = delete;
  AmxTiles& operator=(const AmxTiles&) = delete;

 private:
  alignas(64) uint8_t before_[64];
};

// sums[r][0..32) for 16 rows, or for 32. All of them are read, those beyond the last too.
inline void PanelDotAmx(int rows, const int8_t* x, int64_t stride, const uint8_t* panel, int64_t quads,
                        int32_t sums[][kPanel]) {
  constexpr int64_t kStep = kTileQuads * kPanel * kQuad, kWeightStride = kPanel * kQuad;
  constexpr int kSumStride = kPanel * sizeof(int32_t);
  const int8_t* below = x + 16 * stride;
  _tile_zero(0);
  _tile_zero(1);
  if (rows <= 16) {
    for (int64_t quad = 0; quad < quads; quad += kTileQuads, panel += kStep) {
      _tile_loadd(4, x + quad * kQuad, stride);
      FetchAhead(panel, kStep);
      _tile_loadd(6, panel, kWeightStride);
      _tile_loadd(7, panel + 64, kWeightStride);
      _tile_dpbsud(0, 4, 6);
      _tile_dpbsud(1, 4, 7);
    }
  } else {
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t quad = 0; quad < quads; quad += kTileQuads, panel += kStep) {
      _tile_loadd(4, x + quad * kQuad, stride);
      _tile_loadd(5, below + quad * kQuad, stride);
      FetchAhead(panel, kStep);
      _tile_loadd(6, panel, kWeightStride);
      _tile_loadd(7, panel + 64, kWeightStride);
      _tile_dpbsud(0, 4, 6);
      _tile_dpbsud(1, 4, 7);
      _tile_dpbsud(2, 5, 6);
      _tile_dpbsud(3, 5, 7);
    }
    _tile_stored(2, sums[16], kSumStride);
    _tile_stored(3, sums[16] + 16, kSumStride);
  }
  _tile_stored(0, sums[0], kSumStride);
  _tile_stored(1, sums[0] + 16, kSumStride);
}

}  // namespace tpustream

#endif
