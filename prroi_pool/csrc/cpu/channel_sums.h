// Weighted sums over runs of channels: the inner loops of all CPU kernels. They add up to four terms at a time, so that a
// sum is loaded and stored once per four products. Compilers vectorise these loops without -ffast-math, but GCC needs
// `restrict` and `omp simd`, because with this many pointers it cannot prove that the arrays do not overlap.

#pragma once

#include <cstdint>
#include <type_traits>

#ifdef _MSC_VER
#define PRROI_POOL_RESTRICT __restrict
#else
#define PRROI_POOL_RESTRICT __restrict__
#endif

namespace prroi_pool {

// Runs of channels, `stride` apart.
template <typename T>
struct Terms {
  const T* data;
  int64_t stride;
};

// One weight per term, `stride` apart.
template <typename T>
struct Weights {
  const T* data;
  int64_t stride;
};

// One weight per term, and its derivatives with respect to the low and the high end of the RoI.
template <typename T>
struct DifferentiableWeights {
  const T* value;
  const T* d_low;
  const T* d_high;
  int64_t stride;
};

// Sums with the weights and with each of their derivatives.
template <typename T>
struct DifferentiableSums {
  T* value;
  T* d_low;
  T* d_high;
};

// Calls visit(n, number) for parts [n, n + number) of [0, count). `number` is a compile-time constant of at most four.
template <typename Visit>
inline void for_parts(int64_t count, const Visit& visit) {
  int64_t n = 0;
  for (; n + 4 <= count; n += 4) {
    visit(n, std::integral_constant<int, 4>{});
  }
  if (count - n == 3) {
    visit(n, std::integral_constant<int, 3>{});
  } else if (count - n == 2) {
    visit(n, std::integral_constant<int, 2>{});
  } else if (count - n == 1) {
    visit(n, std::integral_constant<int, 1>{});
  }
}

// sum[c] += Σ_n weights[n] * terms[n][c], for n in [0, count) and c in [0, channels).
template <typename T>
inline void add_weighted(
    T* PRROI_POOL_RESTRICT sum, const Terms<T>& terms, const Weights<T>& weights, int64_t count, int64_t channels) {
  for_parts(count, [&](int64_t first, auto number) {
    const T* PRROI_POOL_RESTRICT term = terms.data + first * terms.stride;
    const int64_t stride = terms.stride;
    T weight[number];
    for (int n = 0; n < number; ++n) {
      weight[n] = weights.data[(first + n) * weights.stride];
    }
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      T total = sum[c];
      for (int n = 0; n < number; ++n) {
        total += weight[n] * term[n * stride + c];
      }
      sum[c] = total;
    }
  });
}

// The same sums, with the weights and with each of their derivatives.
template <typename T>
inline void add_weighted(
    const DifferentiableSums<T>& sums,
    const Terms<T>& terms,
    const DifferentiableWeights<T>& weights,
    int64_t count,
    int64_t channels) {
  for_parts(count, [&](int64_t first, auto number) {
    const T* PRROI_POOL_RESTRICT term = terms.data + first * terms.stride;
    T* PRROI_POOL_RESTRICT value = sums.value;
    T* PRROI_POOL_RESTRICT d_low = sums.d_low;
    T* PRROI_POOL_RESTRICT d_high = sums.d_high;
    const int64_t stride = terms.stride;
    T weight[number][3];
    for (int n = 0; n < number; ++n) {
      const int64_t index = (first + n) * weights.stride;
      weight[n][0] = weights.value[index];
      weight[n][1] = weights.d_low[index];
      weight[n][2] = weights.d_high[index];
    }
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      T total_value = value[c], total_low = d_low[c], total_high = d_high[c];
      for (int n = 0; n < number; ++n) {
        const T t = term[n * stride + c];
        total_value += weight[n][0] * t;
        total_low += weight[n][1] * t;
        total_high += weight[n][2] * t;
      }
      value[c] = total_value;
      d_low[c] = total_low;
      d_high[c] = total_high;
    }
  });
}

// Adds to `grads` the gradients, with respect to x1, y1, x2 and y2, of the product of two sums: the given sums along x, and
// the sums of `y_terms` along y. `grads` contains four runs of `channels` elements.
template <typename T>
inline void add_product_gradients(
    T* PRROI_POOL_RESTRICT grads,
    const DifferentiableSums<T>& x,
    const Terms<T>& y_terms,
    const DifferentiableWeights<T>& y_weights,
    int64_t count,
    int64_t channels) {
  for_parts(count, [&](int64_t first, auto number) {
    const T* PRROI_POOL_RESTRICT term = y_terms.data + first * y_terms.stride;
    const T* PRROI_POOL_RESTRICT x_value = x.value;
    const T* PRROI_POOL_RESTRICT x_low = x.d_low;
    const T* PRROI_POOL_RESTRICT x_high = x.d_high;
    const int64_t stride = y_terms.stride;
    T weight[number][3];
    for (int n = 0; n < number; ++n) {
      const int64_t index = (first + n) * y_weights.stride;
      weight[n][0] = y_weights.value[index];
      weight[n][1] = y_weights.d_low[index];
      weight[n][2] = y_weights.d_high[index];
    }
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      T y_value = 0, y_low = 0, y_high = 0;
      for (int n = 0; n < number; ++n) {
        const T t = term[n * stride + c];
        y_value += weight[n][0] * t;
        y_low += weight[n][1] * t;
        y_high += weight[n][2] * t;
      }
      grads[c] += x_low[c] * y_value;
      grads[channels + c] += x_value[c] * y_low;
      grads[2 * channels + c] += x_high[c] * y_value;
      grads[3 * channels + c] += x_value[c] * y_high;
    }
  });
}

}  // namespace prroi_pool
