// Weighted sums over runs of channels: the inner loop of every CPU kernel.

#pragma once

#include <cstdint>

#ifdef _MSC_VER
#define PRROI_POOL_RESTRICT __restrict
#else
#define PRROI_POOL_RESTRICT __restrict__
#endif

namespace prroi_pool {

template <int Terms, typename T>
inline void add_terms(
    T* PRROI_POOL_RESTRICT sum,
    const T* PRROI_POOL_RESTRICT terms,
    int64_t term_stride,
    const T* weights,
    int64_t weight_stride,
    int64_t channels) {
  T weight[Terms];
  for (int n = 0; n < Terms; ++n) {
    weight[n] = weights[n * weight_stride];
  }
  for (int64_t c = 0; c < channels; ++c) {
    T total = sum[c];
    for (int n = 0; n < Terms; ++n) {
      total += weight[n] * terms[n * term_stride + c];
    }
    sum[c] = total;
  }
}

// sum[c] += Σ_n weights[n * weight_stride] * terms[n * term_stride + c] for c in [0, channels). Four terms at
// a time, so that the sum is loaded and stored once for four products; any compiler vectorises this, without
// -ffast-math.
template <typename T>
inline void add_weighted(
    T* sum,
    const T* terms,
    int64_t term_stride,
    const T* weights,
    int64_t weight_stride,
    int64_t count,
    int64_t channels) {
  for (; count >= 4; count -= 4, terms += 4 * term_stride, weights += 4 * weight_stride) {
    add_terms<4>(sum, terms, term_stride, weights, weight_stride, channels);
  }
  if (count == 3) {
    add_terms<3>(sum, terms, term_stride, weights, weight_stride, channels);
  } else if (count == 2) {
    add_terms<2>(sum, terms, term_stride, weights, weight_stride, channels);
  } else if (count == 1) {
    add_terms<1>(sum, terms, term_stride, weights, weight_stride, channels);
  }
}

}  // namespace prroi_pool
