// Vectors of 16 floats, and the two number types in which weights, keys and values are stored.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace foreword {

constexpr int kLanes = 16;
typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef int8_t Bytes __attribute__((vector_size(16)));

struct bf16 {
  uint16_t bits;
};

inline Floats splat(float x) { return Floats{} + x; }

inline Floats load(const float* p) {
  Floats v;
  memcpy(&v, p, sizeof v);
  return v;
}

inline void store(float* p, Floats v) { memcpy(p, &v, sizeof v); }

// Traits of a number type: how many values of the inner dimension a 32-bit lane holds, and how to
// multiply and add such lanes. Matrices are stored so that the lanes of a vector are adjacent.
template <class T>
struct Lanes;

template <>
struct Lanes<float> {
  static constexpr int kPack = 1;
  using Lane = float;
  static Floats load_lanes(const float* p) { return load(p); }
  static Floats load_lanes(const int8_t* p) {
    Bytes v;
    memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, Floats);
  }
  static Floats broadcast(const float* p) { return splat(*p); }
  static Floats dot(Floats sum, Floats a, Floats b) { return sum + a * b; }
};

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float y;
  memcpy(&y, &bits, 4);
  return y;
}

inline void from_float(float& to, float x) { to = x; }
inline void from_float(bf16& to, float x) {  // rounds to nearest, ties to even, as torch does
  uint32_t bits;
  memcpy(&bits, &x, 4);
  to.bits = x != x ? 0x7FC0 : uint16_t((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

#if defined(__AVX512BF16__)
#define FOREWORD_BF16 1
template <>
struct Lanes<bf16> {
  static constexpr int kPack = 2;
  static Floats load_lanes(const bf16* p) {
    Floats v;
    memcpy(&v, p, sizeof v);
    return v;
  }
  static Floats load_lanes(const int8_t* p) {  // exact: bf16 represents integers up to 256
    __m256i pairs = _mm256_loadu_si256((const __m256i*)p);
    __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(pairs)));
    __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(pairs, 1)));
    return (Floats)_mm512_cvtne2ps_pbh(high, low);
  }
  static Floats broadcast(const bf16* p) {
    int32_t pair;
    memcpy(&pair, p, 4);
    return (Floats)_mm512_set1_epi32(pair);
  }
  static Floats dot(Floats sum, Floats a, Floats b) {
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
  }
};

inline Floats load(const bf16* p) {
  __m256i half = _mm256_loadu_si256((const __m256i*)p);
  return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
}
inline void store(bf16* p, Floats v) {
  __m256bh half = _mm512_cvtneps_pbh((__m512)v);
  memcpy(p, &half, sizeof half);
}
#endif

// Prefetches the cache line at `p` into the second level cache.
inline void prefetch_l2(const void* p) { __builtin_prefetch(p, 0, 2); }

#if defined(__AVX512F__)
inline float sum(Floats v) { return _mm512_reduce_add_ps((__m512)v); }
inline float max(Floats v) { return _mm512_reduce_max_ps((__m512)v); }
inline Floats max(Floats a, Floats b) { return (Floats)_mm512_max_ps((__m512)a, (__m512)b); }
inline Floats min(Floats a, Floats b) { return (Floats)_mm512_min_ps((__m512)a, (__m512)b); }
#else
inline float sum(Floats v) {
  float total = 0;
  for (int i = 0; i < kLanes; i++) total += v[i];
  return total;
}
inline float max(Floats v) {
  float highest = v[0];
  for (int i = 1; i < kLanes; i++) highest = v[i] > highest ? v[i] : highest;
  return highest;
}
inline Floats max(Floats a, Floats b) { return a > b ? a : b; }
inline Floats min(Floats a, Floats b) { return a < b ? a : b; }
#endif

// 2^x, to a few units in the last place; below -126 the result is about 0. The polynomial fits 2^x
// on [-1/2, 1/2] to 2e-7 (least squares of the relative error at Chebyshev nodes).
inline Floats exp2(Floats x) {
  const Floats y = max(min(x, splat(127.0f)), splat(-127.0f));
#if defined(__AVX512F__)
  const Floats n = (Floats)_mm512_roundscale_ps((__m512)y, 0);
#else
  const Ints whole = __builtin_convertvector(y + (y < 0.0f ? splat(-0.5f) : splat(0.5f)), Ints);
  const Floats n = __builtin_convertvector(whole, Floats);
#endif
  const Floats f = y - n;
  Floats p = splat(1.32670e-3f);
  p = p * f + 9.67546e-3f;
  p = p * f + 5.550743e-2f;
  p = p * f + 2.4022122e-1f;
  p = p * f + 6.9314695e-1f;
  p = p * f + 1.00000007f;
#if defined(__AVX512F__)
  return (Floats)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  const Ints power = (whole + 127) << 23;
  Floats scale;
  memcpy(&scale, &power, sizeof scale);
  return p * scale;
#endif
}

constexpr float kLog2E = 1.44269504088896341f;

inline Floats exp(Floats x) { return exp2(x * kLog2E); }

}  // namespace foreword
