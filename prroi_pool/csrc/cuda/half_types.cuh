// float16 and bfloat16 without CUDA's headers, which NVRTC does not include.

#pragma once

#ifndef __CUDACC_RTC__
#include <cstring>
#endif

#include "../bilinear_integral.h"

namespace prroi_pool {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

PRROI_POOL_INLINE float widen(float value) {
  return value;
}

PRROI_POOL_INLINE double widen(double value) {
  return value;
}

PRROI_POOL_INLINE uint32_t bits_of(float value) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(value);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
#endif
}

PRROI_POOL_INLINE float float_of(uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
#endif
}

PRROI_POOL_INLINE float widen(BFloat16 value) {
  return float_of(static_cast<uint32_t>(value.bits) << 16);
}

PRROI_POOL_INLINE float widen(Half value) {
#ifdef __CUDA_ARCH__
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
#else
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16, magnitude = value.bits & 0x7fff;
  if (magnitude >= 0x7c00) {  // infinity or NaN
    return float_of(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  }
  // Shifted into a float, the number still has float16's exponent bias. The product corrects it, also for denormal numbers.
  return float_of(sign | bits_of(float_of(magnitude << 13) * 0x1p112f));
#endif
}

// `Narrow<T>::from` rounds to the nearest T, with ties to even.
template <typename T>
struct Narrow {
  template <typename Acc>
  PRROI_POOL_INLINE static T from(Acc value) {
    return value;
  }
};

template <>
struct Narrow<BFloat16> {
  PRROI_POOL_INLINE static BFloat16 from(float value) {
    const uint32_t bits = bits_of(value);
    if (value != value) {
      return {0x7fff};
    }
    return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
  }
};

template <>
struct Narrow<Half> {
  PRROI_POOL_INLINE static Half from(float value) {
    Half result;
#ifdef __CUDA_ARCH__
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
#else
    const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000;
    const float magnitude = float_of(bits & 0x7fffffff);
    uint32_t rounded;
    if (value != value) {
      rounded = 0x7fff;
    } else if (magnitude >= 65520) {  // rounds to infinity
      rounded = 0x7c00;
    } else if (magnitude < 0x1p-14f) {  // denormal: this sum's last bit is worth 2^-24
      rounded = bits_of(magnitude + 0.5f) - bits_of(0.5f);
    } else {
      const uint32_t normal = bits_of(magnitude);
      rounded = (normal - (112u << 23) + 0xfff + (normal >> 13 & 1)) >> 13;
    }
    result.bits = static_cast<uint16_t>(sign | rounded);
#endif
    return result;
  }
};

}  // namespace prroi_pool
