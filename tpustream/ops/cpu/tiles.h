// The two products of attention, for a few rows at a time.
//
// Sums run over one index from front to back whatever the tile, so a number does not depend on how many
// rows or columns were computed beside it.
#pragma once

#include <cstdint>
#include <type_traits>

#include "vec.h"

namespace tpustream {

// Rows of keys lie a page or more apart, where the processor fetches nothing by itself.
constexpr int64_t kRowsAhead = 12;

template <int kRows, int kWide, typename T>
void ScoreTile(const float* q, int64_t head_dim, const T* k, int64_t stride, int64_t count, float* out,
               int64_t out_stride) {
  Vec sums[kRows][kWide] = {};
  for (int64_t h = 0; h < head_dim; ++h) {
    const T* keys = k + h * stride;
    for (int64_t byte = 0; byte < kWide * kLanes * static_cast<int64_t>(sizeof(T)); byte += 64)
      __builtin_prefetch(reinterpret_cast<const char*>(keys + kRowsAhead * stride) + byte);
    Vec rows[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) rows[r] = Splat(q[r * head_dim + h]);
#pragma GCC unroll 8
    for (int w = 0; w < kWide; ++w) {
      const Vec key = kWide == 1 ? LoadPart(keys, count) : Load(keys + w * kLanes);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) sums[r][w] += rows[r] * key;
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int w = 0; w < kWide; ++w) Store(out + r * out_stride + w * kLanes, sums[r][w]);
}

// out[r, c] = sum over h of q[r, h] * k[h, c], c < count; a row of out holds whole vectors.
template <int kRows, typename T>
void Scores(const float* q, int64_t head_dim, const T* k, int64_t stride, int64_t count, float* out,
            int64_t out_stride) {
  int64_t c = 0;
  const auto tiles = [&](auto wide) {
    constexpr int kWide = decltype(wide)::value;
    for (; kWide == 1 ? c < count : c + kWide * kLanes <= count; c += kWide * kLanes)
      ScoreTile<kRows, kWide>(q, head_dim, k + c, stride, count - c, out + c, out_stride);
  };
  // Rows of keys lie in pages of their own: as much of each at once as registers have room for its sums.
  tiles(std::integral_constant<int, kRows < 4 ? 8 : 6>());
  tiles(std::integral_constant<int, 4>());
  tiles(std::integral_constant<int, 2>());
  tiles(std::integral_constant<int, 1>());
}

template <int kRows, int kWide, typename T>
void WeightedTile(const float* p, int64_t p_stride, const T* v, int64_t stride, int64_t count, float* out,
                  int64_t out_stride) {
  Vec sums[kRows][kWide];
  for (int r = 0; r < kRows; ++r)
    for (int w = 0; w < kWide; ++w) sums[r][w] = Load(out + r * out_stride + w * kLanes);
  for (int64_t s = 0; s < count; ++s) {
    Vec values[kWide];
#pragma GCC unroll 4
    for (int w = 0; w < kWide; ++w) values[w] = Load(v + s * stride + w * kLanes);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const Vec weight = Splat(p[r * p_stride + s]);
#pragma GCC unroll 4
      for (int w = 0; w < kWide; ++w) sums[r][w] += weight * values[w];
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int w = 0; w < kWide; ++w) Store(out + r * out_stride + w * kLanes, sums[r][w]);
}

// out[r, h] += sum over s < count of p[r, s] * v[s, h]; head_dim is whole vectors.
template <int kRows, typename T>
void AddWeighted(const float* p, int64_t p_stride, const T* v, int64_t head_dim, int64_t count, float* out,
                 int64_t out_stride) {
  constexpr int kWide = 4;
  int64_t h = 0;
  for (; h + kWide * kLanes <= head_dim; h += kWide * kLanes)
    WeightedTile<kRows, kWide>(p, p_stride, v + h, head_dim, count, out + h, out_stride);
  for (; h < head_dim; h += kLanes)
    WeightedTile<kRows, 1>(p, p_stride, v + h, head_dim, count, out + h, out_stride);
}

// Calls tile(first row, its count as a type) for rows in tiles of at most 4.
template <typename Tile>
void InTiles(int64_t rows, const Tile& tile) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) tile(r, std::integral_constant<int, 4>());
  switch (rows - r) {
    case 3: return tile(r, std::integral_constant<int, 3>());
    case 2: return tile(r, std::integral_constant<int, 2>());
    case 1: return tile(r, std::integral_constant<int, 1>());
  }
}

struct ScoreRule {
  float scale;
  float softcap;  // 0 for none

  Vec operator()(Vec score) const {
    score *= scale;
    if (softcap == 0) return score;
    // cap * tanh(score / cap)
    const Vec magnitude = Max(score, -score);
    const Vec e = ExpNegative(magnitude * (-2 / softcap));
    const Vec bounded = softcap * ((1.0f - e) / (1.0f + e));
    return score < Vec{} ? -bounded : bounded;
  }
};

}  // namespace tpustream
