// int8 matrix products for XLA:CPU: y = x @ w^T, rows of x quantized on the way in (rows.h),
//
//   y = (float(sum(q * w)) * row_scale) * weight_scale.
//
// Sums are exact, so a row's result depends neither on the rows beside it nor on the threads.

#include <algorithm>
#include <cstdint>
#include <optional>

#include "amx.h"
#include "dot.h"
#include "pool.h"
#include "rows.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace tpustream {
namespace {

constexpr int64_t kRowBlock = 256;        // rows at a time: their bytes stay in the second-level cache
constexpr int64_t kChunksPerThread = 2;   // so that a thread that is late does less
constexpr int64_t kSerialRows = 8;        // up to so many rows are quantized faster than handed out

// Weights as PackedWeight lays them out; `scale` has whole panels.
struct Panels {
  const uint8_t* bytes;
  const float* scale;
  int64_t count;
  int64_t quads;

  const uint8_t* at(int64_t panel) const { return bytes + panel * quads * kPanel * kQuad; }
};

void QuantizeRows(Pool& pool, const float* x, int64_t rows, int64_t inputs, QuantizedRows* out) {
  out->Resize(rows, inputs);
  const int64_t chunks = rows <= kSerialRows ? 1 : std::min(rows, pool.threads() * kChunksPerThread);
  pool.For(chunks, [&](int64_t chunk) {
    for (int64_t row = rows * chunk / chunks; row < rows * (chunk + 1) / chunks; ++row)
      out->Quantize(row, x + row * inputs, inputs);
  });
}

// The fastest of the integer dot products for so many rows, and the rows that it takes at a time.
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

// y f32[rows, outputs] of rows that are quantized.
void Product(Pool& pool, const QuantizedRows& x, int64_t rows, const Panels& w, float* y, int64_t outputs) {
  const int64_t chunks = std::min(w.count, pool.threads() * kChunksPerThread);
  pool.For(chunks, [&](int64_t chunk) {
    const Dot dot(rows);
    alignas(64) int32_t sums[Dot::kRows][kPanel];
    float values[kPanel];
    for (int64_t panel = w.count * chunk / chunks; panel < w.count * (chunk + 1) / chunks; ++panel) {
      const float* weight_scale = w.scale + panel * kPanel;
      const int64_t channels = std::min(kPanel, outputs - panel * kPanel);
      for (int64_t first = 0; first < rows; first += dot.rows()) {
        const int64_t last = std::min(first + dot.rows(), rows);
        const int8_t* bytes = x.values.data() + first * x.stride;
        dot(static_cast<int>(last - first), bytes, x.stride, w.at(panel), w.quads, sums);
        for (int64_t row = first; row < last; ++row) {
          const int32_t* sum = sums[row - first];
          const int32_t offset = x.offset[row];
          const float row_scale = x.scale[row];
          for (int64_t o = 0; o < kPanel; ++o)
            values[o] = (static_cast<float>(sum[o] - offset) * row_scale) * weight_scale[o];
          std::copy_n(values, channels, y + row * outputs + panel * kPanel);
        }
      }
    }
  });
}

using Floats = ffi::Buffer<ffi::F32>;
using Bytes = ffi::Buffer<ffi::U8>;

// Packed weights from their buffers: bytes u8[panels, quads, 32, 4], scale f32[panels * 32].
ffi::ErrorOr<Panels> PanelsOf(const Bytes& bytes, const Floats& scale, int64_t inputs) {
  const auto shape = bytes.dimensions();
  if (shape.size() != 4 || shape[2] != kPanel || shape[3] != kQuad)
    return ffi::Unexpected(ffi::Error::InvalidArgument("weights: wanted u8[panels, quads, 32, 4]"));
  if (shape[1] * kQuad != RoundUp(inputs, kInputMultiple))
    return ffi::Unexpected(ffi::Error::InvalidArgument("weights: wanted quads for the inputs of x"));
  if (static_cast<int64_t>(scale.element_count()) != shape[0] * kPanel)
    return ffi::Unexpected(ffi::Error::InvalidArgument("scale: wanted one number for each of 32 x panels"));
  return Panels{bytes.typed_data(), scale.typed_data(), shape[0], shape[1]};
}

// x f32[rows, inputs] -> y f32[rows, outputs].
ffi::Error MatmulCall(Floats x, Bytes bytes, Floats scale, ffi::Result<Floats> y) {
  const int64_t rows = x.dimensions()[0], inputs = x.dimensions()[1], outputs = y->dimensions()[1];
  const auto panels = PanelsOf(bytes, scale, inputs);
  if (panels.has_error()) return panels.error();
  Pool& pool = Pool::Get();
  static thread_local QuantizedRows quantized;  // kept, so that a call allocates nothing
  for (int64_t first = 0; first < rows; first += kRowBlock) {
    const int64_t block = std::min(kRowBlock, rows - first);
    QuantizeRows(pool, x.typed_data() + first * inputs, block, inputs, &quantized);
    Product(pool, quantized, block, *panels, y->typed_data() + first * outputs, outputs);
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace tpustream

XLA_FFI_DEFINE_HANDLER_SYMBOL(tpustream_int8_matmul, tpustream::MatmulCall,
                              ffi::Ffi::Bind()
                                  .Arg<tpustream::Floats>()
                                  .Arg<tpustream::Bytes>()
                                  .Arg<tpustream::Floats>()
                                  .Ret<tpustream::Floats>());

// "avx512_vnni", "avx2" or "portable": what the products were compiled to.
extern "C" const char* tpustream_int8_instructions() { return tpustream::kInstructions; }
