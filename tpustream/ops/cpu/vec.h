// Sixteen floats at a time, on any processor: the compiler makes of them what the processor has.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace tpustream {

constexpr int kLanes = 16;
typedef float Vec __attribute__((vector_size(64)));
typedef int32_t VecInt __attribute__((vector_size(64)));
typedef int8_t VecByte __attribute__((vector_size(16)));

inline Vec Splat(float x) { return Vec{} + x; }

inline Vec Load(const float* from) {
  Vec v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

inline Vec Load(const int8_t* from) {
#if defined(__AVX512F__)
  // GCC 12 takes the general form apart, byte by byte.
  const __m512i wide = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  return reinterpret_cast<Vec>(_mm512_cvtepi32_ps(wide));
#else
  VecByte v;
  std::memcpy(&v, from, sizeof(v));
  return __builtin_convertvector(v, Vec);
#endif
}

// The first `count` numbers, and zeros.
template <typename T>
Vec LoadPart(const T* from, int64_t count) {
  if (count >= kLanes) return Load(from);
  T whole[kLanes] = {};
  std::copy_n(from, count, whole);
  return Load(whole);
}

inline void Store(float* to, Vec v) { std::memcpy(to, &v, sizeof(v)); }

inline Vec Max(Vec a, Vec b) { return a > b ? a : b; }

// In a fixed order, so that the same numbers give the same sum.
inline float Sum(Vec v) {
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) v[i] += v[i + half];
  return v[0];
}

inline float Largest(Vec v) {
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) v[i] = std::max(v[i], v[i + half]);
  return v[0];
}

// e^x for x <= 0, within 2 units in the last place (Cephes expf); 0 below -87.
inline Vec ExpNegative(Vec x) {
  const Vec low = Splat(-87.0f);
  const Vec clamped = Max(x, low);
  const Vec shifted = clamped * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the integer is in the low bits
  const Vec whole = shifted - 12582912.0f;
  const Vec r = (clamped - whole * 0.693359375f) - whole * -2.12194440e-4f;
  Vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  VecInt bits, exponent;
  std::memcpy(&bits, &p, sizeof(p));
  std::memcpy(&exponent, &shifted, sizeof(shifted));
  bits += exponent << 23;
  std::memcpy(&p, &bits, sizeof(p));
  return x >= low ? p : Vec{};
}

}  // namespace tpustream
