// Blocks of columns on matrix tiles, sixteen rows at a time.
#pragma once

#include "amx_floats.h"

#if defined(TPUSTREAM_AMX)

#include "chunk_rows.h"

namespace tpustream::chunk {

class AmxBlocks {
 public:
  static_assert(kColumns == kWide && kTileRows == kLanes);

  AmxBlocks(const ChunkStep& step, Rows& rows) : step_(step), rows_(rows), memory_(Memory::Mine()) {
    const int64_t tiles = RoundUp(rows.count(), kTileRows) / kTileRows;
    memory_.queries.resize(tiles * LeftSize(deep_));
    memory_.weights.resize(LeftSize(kColumns / kTileDepth));
    memory_.keys.resize(RightSize(deep_));
    memory_.values.resize(wide_ * RightSize(kColumns / kTileDepth));
    memory_.scores.resize(tiles * kTileRows * kColumns);
    for (int64_t tile = 0; tile < tiles; ++tile)
      PackLeft(rows.queries.data() + tile * kTileRows * step.head_dim, step.head_dim,
               rows.count() - tile * kTileRows, step.head_dim, memory_.queries.data() + tile * LeftSize(deep_));
  }

  // Two passes: the keys of the block stay in the first cache for one, its values for the other.
  void operator()(const Block& block) {
    PackRight(block.keys, step_.positions, step_.head_dim, block.count, memory_.keys.data());
    for (int64_t w = 0; w < wide_; ++w)
      PackRight(block.values + w * kWide, step_.head_dim, block.count, step_.head_dim - w * kWide,
                memory_.values.data() + w * RightSize(kColumns / kTileDepth));
    ForTiles(block, [&](int64_t first, int64_t) {
      MultiplyParts(memory_.queries.data() + first / kTileRows * LeftSize(deep_), memory_.keys.data(), deep_, true,
                    scores(first), kColumns);
    });
    ForTiles(block, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row)
        Carry(step_, block.first, rows_.state[row], scores(row), rows_.sum(row));
      PackLeft(scores(first), kColumns, last - first, kColumns, memory_.weights.data());
      for (int64_t w = 0; w < wide_; ++w)
        MultiplyParts(memory_.weights.data(), memory_.values.data() + w * RightSize(kColumns / kTileDepth),
                      kColumns / kTileDepth, false, rows_.sum(first) + w * kWide, rows_.sum_stride);
    });
  }

 private:
  // Kept from task to task: a call allocates nothing.
  struct Memory {
    AlignedVector<Part> queries, weights, keys, values;
    AlignedVector<float> scores;

    static Memory& Mine() {
      static thread_local Memory memory;
      return memory;
    }
  };

  // Calls each(first row, row behind the last) for the tiles with a row that sees the block.
  template <typename Each>
  void ForTiles(const Block& block, const Each& each) {
    for (int64_t first = 0; first < rows_.count(); first += kTileRows) {
      const int64_t last = std::min(first + kTileRows, rows_.count());
      if (rows_.state[last - 1].position >= block.first) each(first, last);
    }
  }

  float* scores(int64_t row) { return memory_.scores.data() + row * kColumns; }

  const ChunkStep& step_;
  Rows& rows_;
  Memory& memory_;
  const int64_t deep_ = RoundUp(step_.head_dim, kTileDepth) / kTileDepth;
  const int64_t wide_ = RoundUp(step_.head_dim, kWide) / kWide;
  const AmxTiles tiles_;
};

}  // namespace tpustream::chunk

#endif
