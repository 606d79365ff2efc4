// Rows of floats as bytes. The rule, which the XLA form follows too, so that both give the same bits:
//
//   scale = max|row| / 127,  q = round_to_even(row * (127 / max|row|))
//
// where / 127 is a product with the float nearest 1 / 127, as compilers make of it.
// A row below kSmallest is zero. A row that holds NaN or infinity gives NaN, and no other row does.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace tpustream {

constexpr float kLevels = 127.0f;
constexpr float kSmallest = 1e-30f;    // max|row| from which a row counts as more than zero
constexpr int64_t kRowMultiple = 32;    // rows too: tiles read whole
constexpr int64_t kInputMultiple = 64;  // inputs are padded to this, in rows and in weights

inline int64_t RoundUp(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

struct QuantizedRows {
  int64_t stride = 0;
  std::vector<int8_t> values;
  std::vector<float> scale;     // NaN for a row that is not finite
  std::vector<int32_t> offset;  // 128 * sum of the row's bytes: what the weights' offset adds

  void Resize(int64_t rows, int64_t inputs) {
    stride = RoundUp(inputs, kInputMultiple);
    const int64_t bytes = RoundUp(rows, kRowMultiple) * stride;
    if (static_cast<int64_t>(values.size()) < bytes) values.resize(bytes);
    if (static_cast<int64_t>(scale.size()) < rows) scale.resize(rows), offset.resize(rows);
  }

  void Quantize(int64_t row, const float* x, int64_t inputs) {
    // Bits of |x| are ordered as |x| is, infinity and NaN above all.
    uint32_t peak_bits = 0;
    for (int64_t i = 0; i < inputs; ++i)
      peak_bits = std::max(peak_bits, std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu);
    const float peak = std::bit_cast<float>(peak_bits);
    const bool finite = peak_bits < 0x7f800000u;
    const float inverse = peak >= kSmallest ? kLevels / peak : 0.0f;
    int8_t* out = values.data() + row * stride;
    std::fill(out + inputs, out + stride, int8_t{0});
    scale[row] = finite ? peak * (1.0f / kLevels) : std::numeric_limits<float>::quiet_NaN();
    offset[row] = 0;
    if (!finite) return std::fill(out, out + inputs, int8_t{0});
    int32_t sum = 0;
    for (int64_t i = 0; i < inputs; ++i) {
      const int32_t q = static_cast<int32_t>(std::rint(x[i] * inverse));
      out[i] = static_cast<int8_t>(q);
      sum += q;
    }
    offset[row] = 128 * sum;
  }
};

}  // namespace tpustream
