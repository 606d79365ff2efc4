// The integer dot products of dot.h on matrix tiles, from 8 rows on twice as fast or more.
//
// The layout of a panel is a tile's own: 16 quads of inputs by 16 channels by 4 bytes.
#pragma once

#include "amx.h"

#if defined(TPUSTREAM_AMX)

#include <algorithm>
#include <cstdint>

#include "dot.h"
#include "rows.h"

namespace tpustream {

constexpr int64_t kAmxRows = 32;       // rows that meet a panel together, in two tiles of 16
constexpr int64_t kAmxMostRows = 256;  // of one call
constexpr int64_t kTileQuads = 16;

// Weights that are to come: each step of a product asks for `step` bytes more.
struct Fetch {
  const uint8_t* next;
  int64_t step;

  void operator()() {
    for (int64_t i = 0; i < step; i += 64) __builtin_prefetch(next + i);
    next += step;
  }
};

// Adds to sums[r][0..32) of 16 rows, or of 32, or begins them. All of those rows are read, those beyond the last
// too. Calls beside() once a step: what it does runs while the tiles multiply.
template <typename Beside>
void PanelDotAmx(bool begin, bool both, const int8_t* x, int64_t stride, const uint8_t* panel, int64_t quads,
                 Fetch& fetch, int32_t sums[][kPanel], const Beside& beside) {
  constexpr int64_t kStep = kTileQuads * kPanel * kQuad, kWeightStride = kPanel * kQuad;
  constexpr int kSumStride = kPanel * sizeof(int32_t);
  const int8_t* below = x + 16 * stride;
  if (begin) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, sums[0], kSumStride);
    _tile_loadd(1, sums[0] + 16, kSumStride);
    if (both) {
      _tile_loadd(2, sums[16], kSumStride);
      _tile_loadd(3, sums[16] + 16, kSumStride);
    }
  }
  for (int64_t quad = 0; quad < quads; quad += kTileQuads, panel += kStep) {
    fetch();
    _tile_loadd(4, x + quad * kQuad, stride);
    _tile_loadd(6, panel, kWeightStride);
    _tile_dpbsud(0, 4, 6);
    _tile_loadd(7, panel + 64, kWeightStride);
    _tile_dpbsud(1, 4, 7);
    if (both) {
      _tile_loadd(5, below + quad * kQuad, stride);
      _tile_dpbsud(2, 5, 6);
      _tile_dpbsud(3, 5, 7);
    }
    beside();
  }
  _tile_stored(0, sums[0], kSumStride);
  _tile_stored(1, sums[0] + 16, kSumStride);
  if (both) {
    _tile_stored(2, sums[16], kSumStride);
    _tile_stored(3, sums[16] + 16, kSumStride);
  }
}

// As PanelSums of dot.h, for at most kAmxMostRows rows; their number is rounded up to whole tiles, and read.
//
// Inputs are cut so that a piece of the panel and of 32 rows lie in the first cache together, and sums wait
// in the second for the next piece. The rows of one tile are handed on while the next are multiplied.
template <typename Ready>
void PanelSumsAmx(const int8_t* x, int64_t stride, int64_t rows, const uint8_t* panel, int64_t quads,
                  const Ready& ready) {
  constexpr int64_t kPieceQuads = 192;      // 24 kB of a panel, and of rows
  constexpr int64_t kReadyAtOnce = 3;       // times two rows, in a step
  alignas(64) static thread_local int32_t sums[kAmxMostRows][kPanel];
  const int64_t steps = quads / kTileQuads, pieces = (quads + kPieceQuads - 1) / kPieceQuads;
  const int64_t blocks = (rows + kAmxRows - 1) / kAmxRows;
  int64_t done = 0, summed = 0;
  const auto hand_on = [&](int64_t end) {
    for (; done < end; done += 2) ready(done, sums + done);
  };
  const auto beside = [&] { hand_on(std::min(done + 2 * kReadyAtOnce, summed)); };
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const int64_t first = steps * piece / pieces * kTileQuads, last = steps * (piece + 1) / pieces * kTileQuads;
    const uint8_t* weights = panel + first * kPanel * kQuad;
    // The next piece of weights follows this one in memory: every block of rows asks for a share of it.
    const int64_t share = kTileQuads * kPanel * kQuad / blocks;
    Fetch fetch{blocks == 1 ? weights + kAhead : panel + last * kPanel * kQuad, RoundUp(share, 64)};
    for (int64_t row = 0; row < rows; row += kAmxRows) {
      PanelDotAmx(piece == 0, rows - row > 16, x + row * stride + first * kQuad, stride, weights, last - first,
                  fetch, sums + row, beside);
      if (piece + 1 == pieces) summed = std::min(row + kAmxRows, rows);
    }
  }
  hand_on(rows);
}

}  // namespace tpustream

#endif
