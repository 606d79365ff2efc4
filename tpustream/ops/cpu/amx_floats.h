// Products of float32 matrices on matrix tiles, as exact as float32.
//
// A float's 24 bits are three bfloat16 numbers of 8 bits each, and x = high + middle + low without a rest
// (Henry, Tang and Heinecke 2019, "Leveraging the bfloat16 artificial intelligence datatype"). Of the nine
// products of parts the three smallest are left out: together they are below 2^-22 of the whole. Sums are
// float32, and an element's depends on its row and its column alone.
#pragma once

#include "amx.h"

#if defined(TPUSTREAM_AMX)

#include <algorithm>
#include <cstdint>

namespace tpustream {

constexpr int64_t kTileRows = 16;   // of a left operand, and columns of a right one
constexpr int64_t kTileDepth = 32;  // numbers that one instruction sums
constexpr int64_t kWide = 64;       // columns of a product: four tiles
constexpr int64_t kParts = 3;
constexpr int64_t kTileNumbers = kTileRows * kTileDepth;

using Part = uint16_t;  // the bits of a bfloat16

// Numbers of a left operand [16, 32 deep], and of a right one [32 deep, 64].
constexpr int64_t LeftSize(int64_t deep) { return deep * kParts * kTileNumbers; }
constexpr int64_t RightSize(int64_t deep) { return LeftSize(deep) * kWide / kTileRows; }

namespace floats {

// Twice 16 floats, whose next parts are the upper halves of their bits.
struct Rest {
  __m512 first, second;

  // The next parts, `order` being which of the 64 halves goes where; leaves what they do not hold.
  __m512i Take(__m512i order) {
    const __m512i a = _mm512_castps_si512(first), b = _mm512_castps_si512(second);
    const __m512i upper = _mm512_set1_epi32(0xffff0000);
    first = _mm512_sub_ps(first, _mm512_castsi512_ps(_mm512_and_si512(a, upper)));
    second = _mm512_sub_ps(second, _mm512_castsi512_ps(_mm512_and_si512(b, upper)));
    return _mm512_permutex2var_epi16(a, order, b);
  }
};

struct Orders {
  __m512i one_after_other, in_pairs;

  Orders() {
    alignas(64) int16_t row[32], pairs[32];
    for (int i = 0; i < 16; ++i) {
      row[i] = pairs[2 * i] = 2 * i + 1;
      row[16 + i] = pairs[2 * i + 1] = 32 + 2 * i + 1;
    }
    one_after_other = _mm512_load_si512(row);
    in_pairs = _mm512_load_si512(pairs);
  }
};

inline __m512 LoadUpTo(const float* from, int64_t count) {
  const int64_t lanes = std::clamp<int64_t>(count, 0, 16);
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << lanes) - 1), from);
}

}  // namespace floats

// from f32[rows, depth] as a left operand of 16 rows, with zeros beyond both.
inline void PackLeft(const float* from, int64_t stride, int64_t rows, int64_t depth, Part* to) {
  const floats::Orders orders;
  for (int64_t first = 0; first < depth; first += kTileDepth, to += kParts * kTileNumbers)
    for (int64_t row = 0; row < kTileRows; ++row) {
      const int64_t count = row < rows ? depth - first : 0;
      const float* x = from + row * stride + first;
      floats::Rest rest{floats::LoadUpTo(x, count), floats::LoadUpTo(x + 16, count - 16)};
      for (int64_t part = 0; part < kParts; ++part)
        _mm512_store_si512(to + part * kTileNumbers + row * kTileDepth, rest.Take(orders.one_after_other));
    }
}

// from f32[depth, columns] as a right operand of 64 columns, with zeros beyond both.
inline void PackRight(const float* from, int64_t stride, int64_t depth, int64_t columns, Part* to) {
  const floats::Orders orders;
  const auto at = [&](int64_t row, int64_t column) {
    return floats::LoadUpTo(from + row * stride + column, row < depth ? columns - column : 0);
  };
  for (int64_t first = 0; first < depth; first += kTileDepth, to += kParts * kTileDepth * kWide)
    for (int64_t pair = 0; pair < kTileDepth / 2; ++pair)
      for (int64_t tile = 0; tile < kWide / kTileRows; ++tile) {
        const int64_t row = first + 2 * pair, column = tile * kTileRows;
        floats::Rest rest{at(row, column), at(row + 1, column)};
        Part* tiles = to + tile * kTileNumbers + pair * 2 * kTileRows;
        for (int64_t part = 0; part < kParts; ++part)
          _mm512_store_si512(tiles + part * kTileDepth * kWide, rest.Take(orders.in_pairs));
      }
}

// out f32[16, 64] = left * right, added to what is there unless `begin`. Wants AmxTiles.
inline void MultiplyParts(const Part* left, const Part* right, int64_t deep, bool begin, float* out,
                          int64_t stride) {
  const int64_t bytes = stride * sizeof(float);
  if (begin) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, out, bytes);
    _tile_loadd(1, out + 16, bytes);
    _tile_loadd(2, out + 32, bytes);
    _tile_loadd(3, out + 48, bytes);
  }
  for (int64_t d = 0; d < deep; ++d, left += kParts * kTileNumbers, right += kParts * kTileDepth * kWide)
    for (int64_t of_left = kParts - 1; of_left >= 0; --of_left) {  // the smallest first
      _tile_loadd(4, left + of_left * kTileNumbers, 64);
      for (int64_t of_right = kParts - 1 - of_left; of_right >= 0; --of_right) {
        const Part* part = right + of_right * kTileDepth * kWide;
        _tile_loadd(5, part, 64);
        _tile_dpbf16ps(0, 4, 5);
        _tile_loadd(6, part + kTileNumbers, 64);
        _tile_dpbf16ps(1, 4, 6);
        _tile_loadd(7, part + 2 * kTileNumbers, 64);
        _tile_dpbf16ps(2, 4, 7);
        _tile_loadd(5, part + 3 * kTileNumbers, 64);
        _tile_dpbf16ps(3, 4, 5);
      }
    }
  _tile_stored(0, out, bytes);
  _tile_stored(1, out + 16, bytes);
  _tile_stored(2, out + 32, bytes);
  _tile_stored(3, out + 48, bytes);
}

}  // namespace tpustream

#endif
