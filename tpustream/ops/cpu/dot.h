// Integer dot products of one panel of weights with a few rows: the only file that knows instructions.
//
// A panel is 32 output channels: for every quad of inputs, 32 groups of 4 bytes, each byte a weight
// plus 128. Rows are signed bytes. Both are padded to whole quads, with bytes that add nothing.
// vpdpbusd multiplies unsigned by signed bytes, so the weights carry the offset, and what it adds,
// 128 * sum(row), is known once a row. All arithmetic is exact: every path gives the same integers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__AVX512VNNI__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace tpustream {

constexpr int64_t kPanel = 32;   // output channels of a panel
constexpr int64_t kQuad = 4;     // inputs that one instruction sums
constexpr int kMaxTileRows = 8;  // rows that meet a panel together

// Panels follow each other in memory, so the bytes wanted soon are the bytes further on; the fetch of
// the processor itself starts anew at each page. Measured: 1.3 times the bandwidth at 1 row, 2 at 8.
constexpr int64_t kAhead = 4096;

inline void FetchAhead(const uint8_t* w, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(w + kAhead + i);
}

inline int32_t LoadQuad(const int8_t* x) {
  int32_t quad;
  std::memcpy(&quad, x, sizeof(quad));
  return quad;
}

#if defined(__AVX512VNNI__)

constexpr const char* kInstructions = "avx512_vnni";

// sums[r][0..32) = sum over inputs of (weight + 128) * row r.
template <int kRows>
void PanelDot(const int8_t* x, int64_t stride, const uint8_t* panel, int64_t quads, int32_t sums[][kPanel]) {
  // Eight or more sums in flight hide the latency of one.
  constexpr int kSplit = kRows == 1 ? 4 : kRows <= 3 ? 2 : 1;
  __m512i low[kSplit][kRows], high[kSplit][kRows];
  for (int s = 0; s < kSplit; ++s)
    for (int r = 0; r < kRows; ++r) low[s][r] = high[s][r] = _mm512_setzero_si512();
  int64_t quad = 0;
  for (; quad + kSplit <= quads; quad += kSplit) {
#pragma GCC unroll 4
    for (int s = 0; s < kSplit; ++s) {
      const uint8_t* w = panel + (quad + s) * kPanel * kQuad;
      FetchAhead(w, kPanel * kQuad);
      const __m512i first = _mm512_loadu_si512(w), second = _mm512_loadu_si512(w + 64);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const __m512i row = _mm512_set1_epi32(LoadQuad(x + r * stride + (quad + s) * kQuad));
        low[s][r] = _mm512_dpbusd_epi32(low[s][r], first, row);
        high[s][r] = _mm512_dpbusd_epi32(high[s][r], second, row);
      }
    }
  }
  for (; quad < quads; ++quad) {
    const uint8_t* w = panel + quad * kPanel * kQuad;
    const __m512i first = _mm512_loadu_si512(w), second = _mm512_loadu_si512(w + 64);
    for (int r = 0; r < kRows; ++r) {
      const __m512i row = _mm512_set1_epi32(LoadQuad(x + r * stride + quad * kQuad));
      low[0][r] = _mm512_dpbusd_epi32(low[0][r], first, row);
      high[0][r] = _mm512_dpbusd_epi32(high[0][r], second, row);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int s = 1; s < kSplit; ++s) {
      low[0][r] = _mm512_add_epi32(low[0][r], low[s][r]);
      high[0][r] = _mm512_add_epi32(high[0][r], high[s][r]);
    }
    _mm512_storeu_si512(sums[r], low[0][r]);
    _mm512_storeu_si512(sums[r] + 16, high[0][r]);
  }
}

#elif defined(__AVX2__)

constexpr const char* kInstructions = "avx2";

// The same. Bytes are widened to 16 bits, because vpmaddubsw saturates; two rows at a time.
template <int kRows>
void PanelDot(const int8_t* x, int64_t stride, const uint8_t* panel, int64_t quads, int32_t sums[][kPanel]) {
  for (int64_t group = 0; group < kPanel; group += 8) {  // 8 channels: one register of 32-bit sums a row
    __m256i even[kRows], odd[kRows];
    for (int r = 0; r < kRows; ++r) even[r] = odd[r] = _mm256_setzero_si256();
    for (int64_t quad = 0; quad < quads; ++quad) {
      const uint8_t* w = panel + (quad * kPanel + group) * kQuad;
      const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
      const __m256i even_bytes = _mm256_and_si256(bytes, _mm256_set1_epi16(0xff));
      const __m256i odd_bytes = _mm256_srli_epi16(bytes, 8);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const __m256i row = _mm256_set1_epi32(LoadQuad(x + r * stride + quad * kQuad));
        const __m256i even_row = _mm256_srai_epi16(_mm256_slli_epi16(row, 8), 8);
        const __m256i odd_row = _mm256_srai_epi16(row, 8);
        even[r] = _mm256_add_epi32(even[r], _mm256_madd_epi16(even_bytes, even_row));
        odd[r] = _mm256_add_epi32(odd[r], _mm256_madd_epi16(odd_bytes, odd_row));
      }
    }
    for (int r = 0; r < kRows; ++r) {
      const __m256i sum = _mm256_add_epi32(even[r], odd[r]);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums[r] + group), sum);
    }
  }
}

#else

constexpr const char* kInstructions = "portable";

// The same in plain C++, for any processor.
template <int kRows>
void PanelDot(const int8_t* x, int64_t stride, const uint8_t* panel, int64_t quads, int32_t sums[][kPanel]) {
  for (int r = 0; r < kRows; ++r) {
    int32_t sum[kPanel] = {};
    for (int64_t quad = 0; quad < quads; ++quad) {
      const int8_t* row = x + r * stride + quad * kQuad;
      const uint8_t* w = panel + quad * kPanel * kQuad;
      for (int64_t o = 0; o < kPanel; ++o)
        for (int64_t i = 0; i < kQuad; ++i) sum[o] += int32_t{w[o * kQuad + i]} * row[i];
    }
    std::memcpy(sums[r], sum, sizeof(sum));
  }
}

#endif

// PanelDot for 1 to kMaxTileRows rows.
inline void PanelDotRows(int rows, const int8_t* x, int64_t stride, const uint8_t* panel, int64_t quads,
                         int32_t sums[][kPanel]) {
  switch (rows) {
    case 1: return PanelDot<1>(x, stride, panel, quads, sums);
    case 2: return PanelDot<2>(x, stride, panel, quads, sums);
    case 3: return PanelDot<3>(x, stride, panel, quads, sums);
    case 4: return PanelDot<4>(x, stride, panel, quads, sums);
    case 5: return PanelDot<5>(x, stride, panel, quads, sums);
    case 6: return PanelDot<6>(x, stride, panel, quads, sums);
    case 7: return PanelDot<7>(x, stride, panel, quads, sums);
    default: return PanelDot<8>(x, stride, panel, quads, sums);
  }
}

// Calls ready(row, sums) for every even row: sums[0..2)[0..32) are those of that row and of the next.
template <typename Ready>
void PanelSums(const int8_t* x, int64_t stride, int64_t rows, const uint8_t* panel, int64_t quads,
               const Ready& ready) {
  alignas(64) int32_t sums[kMaxTileRows][kPanel];
  for (int64_t first = 0; first < rows; first += kMaxTileRows) {
    const int64_t count = std::min<int64_t>(kMaxTileRows, rows - first);
    PanelDotRows(static_cast<int>(count), x + first * stride, stride, panel, quads, sums);
    for (int64_t row = 0; row < count; row += 2) ready(first + row, sums + row);
  }
}

}  // namespace tpustream
