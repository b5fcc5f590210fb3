// Conversions between float and the bits of the two half types, for which a GPU has instructions. Kernels that define
// half types of their own convert with these where __CUDA_ARCH__ is not defined.

#pragma once

#include <cstdint>
#include <cstring>

namespace cuda_on_cpu {

template <typename To, typename From>
To bit_cast(const From& value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof(To));
  return result;
}

inline float half_bits_to_float(uint16_t bits) {
  return bit_cast<_Float16>(bits);
}

inline uint16_t float_to_half_bits(float value) {
  return bit_cast<uint16_t>(static_cast<_Float16>(value));
}

inline float bfloat16_bits_to_float(uint16_t bits) {
  return bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

inline uint16_t float_to_bfloat16_bits(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  if (value != value) {
    return 0x7fff;
  }
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);  // to nearest, ties to even
}

}  // namespace cuda_on_cpu
