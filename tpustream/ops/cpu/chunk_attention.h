// A chunk of a prompt over all positions before it and itself; its keys and values are written first.
//
// A row takes columns in blocks of kColumns counted from position 0, each block front to back, with the
// softmax carried from block to block (Milakov and Gimelshein 2018). So a row's bits depend on its own
// position alone: neither on where the prompt was cut nor on the threads.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "pool.h"
#include "tiles.h"

namespace tpustream {

struct ChunkStep {
  int64_t rows, heads, kv_heads, head_dim, positions;  // `positions`: room of the prefix
  int64_t start, count;                                // position of the first row; rows that count
  int64_t window;                                      // positions that a row sees, itself included
  const float* q;                                      // [rows, heads, head_dim]
  const float *k, *v;                                  // [rows, kv_heads, head_dim]
  float* prefix_k;                                     // [kv_heads, head_dim, positions]
  float* prefix_v;                                     // [kv_heads, positions, head_dim]
  ScoreRule rule;
  float* out;                                          // [rows, heads, head_dim], zero beyond `count`
};

namespace chunk {

constexpr int64_t kColumns = 64;
constexpr int64_t kTaskRows = 16;  // tokens that a thread takes at a time

inline void WriteHead(const ChunkStep& step, int64_t head) {
  const int64_t head_dim = step.head_dim, stride = step.kv_heads * head_dim;
  float* k = step.prefix_k + head * head_dim * step.positions + step.start;
  float* v = step.prefix_v + (head * step.positions + step.start) * head_dim;
  for (int64_t h = 0; h < head_dim; ++h)
    for (int64_t t = 0; t < step.rows; ++t) k[h * step.positions + t] = step.k[t * stride + head * head_dim + h];
  for (int64_t t = 0; t < step.rows; ++t)
    std::copy_n(step.v + t * stride + head * head_dim, head_dim, v + t * head_dim);
}

// One query under way: where it stands and its softmax so far.
struct Row {
  int64_t position;
  float peak, total, poison;
};

// Weights of one row's scores in place, and what the row held so far scaled down to the new peak.
inline void Carry(const ChunkStep& step, int64_t column, int64_t count, Row& row, float* scores, float* out) {
  const float lowest = -std::numeric_limits<float>::infinity();
  const int64_t oldest = row.position - step.window;
  Vec peak = Splat(lowest), total{}, poison{};
  VecInt lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  for (int64_t c = 0; c < count; c += kLanes) {
    const Vec score = step.rule(Load(scores + c));
    const VecInt position = lane + static_cast<int32_t>(column + c);
    const VecInt seen = (position <= static_cast<int32_t>(row.position)) & (position > static_cast<int32_t>(oldest));
    poison += seen ? score * 0.0f : Vec{};  // NaN and infinity pass no maximum
    const Vec masked = seen ? score : Splat(lowest);
    peak = Max(peak, masked);
    Store(scores + c, masked);
  }
  const float highest = std::max(row.peak, Largest(peak));
  row.poison += Sum(poison);
  if (highest == lowest) {
    std::fill_n(scores, kColumns, 0.0f);
    return;
  }
  const float shrink = ExpNegative(Splat(row.peak - highest))[0];
  for (int64_t c = 0; c < count; c += kLanes) {
    const Vec weight = ExpNegative(Load(scores + c) - highest);
    total += weight;
    Store(scores + c, weight);
  }
  row.total = row.total * shrink + Sum(total);
  row.peak = highest;
  if (shrink != 1.0f)
    for (int64_t h = 0; h < step.head_dim; h += kLanes) Store(out + h, Load(out + h) * shrink);
}

// Tokens first..last of one kv head's queries.
inline void Rows(const ChunkStep& step, int64_t head, int64_t first, int64_t last) {
  static thread_local std::vector<float> queries, sums, keys;
  static thread_local std::vector<Row> rows;
  const int64_t head_dim = step.head_dim, group = step.heads / step.kv_heads;
  const int64_t count = (last - first) * group, written = step.start + step.count;
  queries.resize(count * head_dim);
  sums.assign(count * head_dim, 0.0f);
  keys.resize(head_dim * kColumns);
  rows.clear();
  for (int64_t t = first; t < last; ++t)
    for (int64_t g = 0; g < group; ++g) {
      const float* q = step.q + (t * step.heads + head * group + g) * head_dim;
      std::copy_n(q, head_dim, queries.data() + rows.size() * head_dim);
      rows.push_back({step.start + t, -std::numeric_limits<float>::infinity(), 0.0f, 0.0f});
    }
  const int64_t oldest = std::max<int64_t>(0, step.start + first - step.window + 1);
  for (int64_t column = oldest / kColumns * kColumns; column < step.start + last; column += kColumns) {
    const int64_t columns = std::min(kColumns, written - column);
    for (int64_t h = 0; h < head_dim; ++h) {
      float* to = keys.data() + h * kColumns;
      std::copy_n(step.prefix_k + (head * head_dim + h) * step.positions + column, columns, to);
      std::fill(to + columns, to + kColumns, 0.0f);
    }
    const float* values = step.prefix_v + (head * step.positions + column) * head_dim;
    InTiles(count, [&](int64_t r, auto tile) {
      constexpr int kRows = decltype(tile)::value;
      if (rows[r + kRows - 1].position < column) return;
      alignas(64) float scores[kRows][kColumns];
      Scores<kRows>(queries.data() + r * head_dim, head_dim, keys.data(), kColumns, kColumns, scores[0], kColumns);
      for (int i = 0; i < kRows; ++i)
        Carry(step, column, kColumns, rows[r + i], scores[i], sums.data() + (r + i) * head_dim);
      AddWeighted<kRows>(scores[0], kColumns, values, head_dim, columns, sums.data() + r * head_dim, head_dim);
    });
  }
  for (int64_t r = 0; r < count; ++r) {
    float* out = step.out + ((first + r / group) * step.heads + head * group + r % group) * head_dim;
    const float* sum = sums.data() + r * head_dim;
    for (int64_t h = 0; h < head_dim; h += kLanes)
      Store(out + h, Load(sum + h) / rows[r].total + rows[r].poison);
  }
}

}  // namespace chunk

inline void ChunkAttention(Pool& pool, const ChunkStep& step) {
  pool.For(step.kv_heads, [&](int64_t head) { chunk::WriteHead(step, head); });
  const int64_t tasks = (step.count + chunk::kTaskRows - 1) / chunk::kTaskRows;
  pool.For(step.kv_heads * tasks, [&](int64_t i) {
    // The last rows see the most: they go first.
    const int64_t first = (tasks - 1 - i / step.kv_heads) * chunk::kTaskRows;
    chunk::Rows(step, i % step.kv_heads, first, std::min(first + chunk::kTaskRows, step.count));
  });
  const int64_t row = step.heads * step.head_dim;
  std::fill(step.out + step.count * row, step.out + step.rows * row, 0.0f);
}

}  // namespace tpustream
