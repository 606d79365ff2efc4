// Products of quantized rows with packed weights, and what a feed-forward layer makes of two of them.
//
//   y = (256 * float(sum of high bytes) + float(sum of low bytes)) * row_scale * weight_scale
//
// Sums are exact, so a row's result depends neither on the rows beside it nor on the threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "amx.h"
#include "dot.h"
#include "pool.h"
#include "rows.h"
#include "vec.h"

namespace tpustream {

constexpr int64_t kChunksPerThread = 2;  // so that a thread that is late does less
constexpr int64_t kSerialRows = 2;       // up to so many rows are quantized faster than handed out

// Weights as PackedWeight lays them out; `scale` has whole panels.
struct Panels {
  const uint8_t* bytes;
  const float* scale;
  int64_t count;
  int64_t quads;

  const uint8_t* at(int64_t panel) const { return bytes + panel * quads * kPanel * kQuad; }
};

inline void QuantizeRows(Pool& pool, const float* x, int64_t rows, int64_t inputs, QuantizedRows* out) {
  out->Resize(rows, inputs);
  const int64_t chunks = rows <= kSerialRows ? 1 : std::min(rows, pool.threads() * kChunksPerThread);
  pool.For(chunks, [&](int64_t chunk) {
    for (int64_t row = rows * chunk / chunks; row < rows * (chunk + 1) / chunks; ++row)
      out->Quantize(row, x + row * inputs, inputs);
  });
}

// The fastest of the integer dot products for so many rows of bytes, and the rows that it takes at a time.
class Dot {
 public:
  static constexpr int kRows = 32;  // at most

#if defined(__AMX_INT8__) && defined(__linux__)
  explicit Dot(int64_t rows) : amx_(rows >= kAmxFrom && AmxUsable()) {
    if (amx_) tiles_.emplace();
  }
  int64_t rows() const { return amx_ ? kAmxRows : kMaxTileRows; }
  void operator()(int rows, const int8_t* x, int64_t stride, const uint8_t* panel, int64_t quads,
                  int32_t sums[][kPanel]) const {
    (amx_ ? PanelDotAmx : PanelDotRows)(rows, x, stride, panel, quads, sums);
  }

 private:
  static constexpr int64_t kAmxFrom = 8;  // measured: below, one tile is too empty

  bool amx_;
  std::optional<AmxTiles> tiles_;
#else
  explicit Dot(int64_t) {}
  int64_t rows() const { return kMaxTileRows; }
  void operator()(int rows, const int8_t* x, int64_t stride, const uint8_t* panel, int64_t quads,
                  int32_t sums[][kPanel]) const {
    PanelDotRows(rows, x, stride, panel, quads, sums);
  }
#endif
};

// Calls store(row, values[kPanel]) for every row's products with one panel.
template <typename StoreRow>
void PanelProduct(const Dot& dot, const QuantizedRows& x, int64_t rows, const Panels& w, int64_t panel,
                  const StoreRow& store) {
  alignas(64) int32_t sums[Dot::kRows][kPanel];
  alignas(64) float values[kPanel];
  const float* weight_scale = w.scale + panel * kPanel;
  const int64_t step = dot.rows() / 2;
  for (int64_t first = 0; first < rows; first += step) {
    const int64_t last = std::min(first + step, rows);
    dot(static_cast<int>(2 * (last - first)), x.values.data() + 2 * first * x.stride, x.stride, w.at(panel),
        w.quads, sums);
    for (int64_t row = first; row < last; ++row) {
      const int32_t *high = sums[2 * (row - first)], *low = high + kPanel;
      const int32_t high_offset = x.offset[2 * row], low_offset = x.offset[2 * row + 1];
      const float row_scale = x.scale[row];
      for (int64_t o = 0; o < kPanel; ++o) {
        const float sum = static_cast<float>(high[o] - high_offset) * 256.0f + static_cast<float>(low[o] - low_offset);
        values[o] = (sum * row_scale) * weight_scale[o];
      }
      store(row, values);
    }
  }
}

// One of the weights that share their rows, and where its products go: y f32[rows, outputs].
struct Target {
  Panels weight;
  float* y;
  int64_t outputs;
};

inline void Product(Pool& pool, const QuantizedRows& x, int64_t rows, const std::vector<Target>& targets) {
  int64_t panels = 0;
  for (const Target& target : targets) panels += target.weight.count;
  const int64_t chunks = std::min(panels, pool.threads() * kChunksPerThread);
  pool.For(chunks, [&](int64_t chunk) {
    const Dot dot(2 * rows);
    int64_t begin = panels * chunk / chunks, end = panels * (chunk + 1) / chunks;
    for (const Target& target : targets) {
      const int64_t last = std::min(end, target.weight.count);
      for (int64_t panel = begin; panel < last; ++panel) {
        const int64_t channels = std::min(kPanel, target.outputs - panel * kPanel);
        float* y = target.y + panel * kPanel;
        PanelProduct(dot, x, rows, target.weight, panel,
                     [&](int64_t row, const float* values) { std::copy_n(values, channels, y + row * target.outputs); });
      }
      begin = std::max<int64_t>(begin - target.weight.count, 0);
      end -= target.weight.count;
      if (end <= 0) break;
    }
  });
}

enum class Activation : int64_t { kSilu = 0, kGelu = 1 };

inline Vec Activate(Activation activation, Vec x) {
  // silu(x) = x * sigmoid(x), and gelu(x) ~ x * sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)).
  const Vec inner = activation == Activation::kSilu ? x : 1.5957691216f * (x + 0.044715f * x * x * x);
  const Vec e = ExpNegative(-Max(inner, -inner));
  return x * (inner >= Vec{} ? 1.0f / (1.0f + e) : e / (1.0f + e));
}

// h f32[rows, outputs] = activation(x @ gate^T) * (x @ up^T).
inline void Gated(Pool& pool, const QuantizedRows& x, int64_t rows, const Panels& gate, const Panels& up,
                  Activation activation, int64_t outputs, float* h) {
  const int64_t chunks = std::min(gate.count, pool.threads() * kChunksPerThread);
  pool.For(chunks, [&](int64_t chunk) {
    const Dot dot(2 * rows);
    for (int64_t panel = gate.count * chunk / chunks; panel < gate.count * (chunk + 1) / chunks; ++panel) {
      const int64_t channels = std::min(kPanel, outputs - panel * kPanel);
      float* y = h + panel * kPanel;
      PanelProduct(dot, x, rows, gate, panel,
                   [&](int64_t row, const float* values) { std::copy_n(values, channels, y + row * outputs); });
      PanelProduct(dot, x, rows, up, panel, [&](int64_t row, const float* values) {
        float* to = y + row * outputs;
        for (int64_t o = 0; o < channels; o += kLanes) {
          const int64_t count = std::min<int64_t>(kLanes, channels - o);
          const Vec result = Activate(activation, LoadPart(to + o, count)) * Load(values + o);
          alignas(64) float whole[kLanes];
          Store(whole, result);
          std::copy_n(whole, count, to + o);
        }
      });
    }
  });
}

}  // namespace tpustream
