// Products of few rows, y[m][n] = sum_k x[m][k] * w[n][k]. With few rows of x their time is that of reading the weight,
// so each of its elements is read once, for all rows, and unpacked in registers.
//
// Vectors are those of GCC and Clang (vector_size), as wide as the machine's; only conversions from float16 and the
// product of integers need instructions by name. What a product is made of, a struct says:
//
//   Element               of the weight
//   Value, Values         of x and the unpacked weight, as they are multiplied, and a vector of WIDTH of them
//   Total, Sums           what is summed in, and a vector of LANES of them
//   PARTS                 vectors that a step of PARTS * WIDTH elements is unpacked into
//   unpack(w, part)       one of them, of the step at w
//   source(part, lane)    which of the step's elements is in that lane
//   multiply_add(s, x, w) s + x * w
//   COLUMNS               rows of the weight that four rows of x meet at once, as many as registers hold the sums of

#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
constexpr int BYTES = 4 * LANES;
typedef float Floats __attribute__((vector_size(BYTES)));
typedef int32_t Ints __attribute__((vector_size(BYTES)));
typedef uint32_t Words __attribute__((vector_size(BYTES)));
typedef int16_t Shorts __attribute__((vector_size(BYTES)));

template <class V>
V load(const void* address) {
  V value;
  std::memcpy(&value, address, sizeof value);
  return value;
}

constexpr bool WIDE = LANES == 16;
constexpr int64_t MAX_ROWS = 16;      // of x, that are multiplied in one go
constexpr int64_t GROUP = 12;         // rows of the weight that share a block of x
constexpr int64_t X_CACHE = 16 << 10; // bytes of x that stay in the first-level cache, next to the weight
constexpr int64_t PANEL = 256 << 10;  // bytes of the weight that stay in the second-level cache

// acc[m][n] += x[m][:] * w[n][:] over `steps` steps, for ROWS rows of x and COLS rows of w. Meanwhile the rows at `ahead`
// are fetched, `pace` elements a step; null: none.
template <class Product, int ROWS, int COLS>
void tile(const typename Product::Value* x, int64_t x_stride, const typename Product::Element* w,
          const typename Product::Element* ahead, int64_t pace, int64_t w_stride, int64_t steps,
          typename Product::Sums (*acc)[GROUP]) {
  constexpr int64_t STEP = Product::PARTS * Product::WIDTH;
  typename Product::Sums sums[ROWS][COLS];
  for (int m = 0; m < ROWS; m++)
    for (int n = 0; n < COLS; n++) sums[m][n] = acc[m][n];
  const auto multiply = [&](int64_t k) {
    for (int part = 0; part < Product::PARTS; part++) {
      typename Product::Values weights[COLS];
      for (int n = 0; n < COLS; n++) weights[n] = Product::unpack(w + n * w_stride + k, part);
      for (int m = 0; m < ROWS; m++) {
        const auto values = load<typename Product::Values>(x + m * x_stride + k + part * Product::WIDTH);
        for (int n = 0; n < COLS; n++) sums[m][n] = Product::multiply_add(sums[m][n], values, weights[n]);
      }
    }
  };
  if (ahead)
    for (int64_t k = 0; k < steps * STEP; k += STEP, ahead += pace) {
      for (int n = 0; n < COLS; n++) __builtin_prefetch(ahead + n * w_stride);
      multiply(k);
    }
  else
    for (int64_t k = 0; k < steps * STEP; k += STEP) multiply(k);
  for (int m = 0; m < ROWS; m++)
    for (int n = 0; n < COLS; n++) acc[m][n] = sums[m][n];
}

// The same for any number of rows of x, ROWS at once. The first two turns fetch what is ahead: with more the time is that
// of computing.
template <class Product, int ROWS, int COLS>
void tiles(int64_t rows, const typename Product::Value* x, int64_t x_stride, const typename Product::Element* w,
           const typename Product::Element* ahead, int64_t w_stride, int64_t steps,
           typename Product::Sums (*acc)[GROUP]) {
  constexpr int64_t STEP = Product::PARTS * Product::WIDTH;
  const int64_t left = rows % ROWS;
  const int64_t turns = std::min<int64_t>(2, rows / ROWS + left / 4 + left % 4 / 2 + left % 2), pace = STEP / turns;
  int64_t m = 0, turn = 0;
  const auto forward = [&](int64_t by) {
    m += by;
    ahead = ahead && ++turn < turns ? ahead + steps * pace : nullptr;
  };
  for (; m + ROWS <= rows; forward(ROWS))
    tile<Product, ROWS, COLS>(x + m * x_stride, x_stride, w, ahead, pace, w_stride, steps, acc + m);
  for (; m + 4 <= rows; forward(4))
    tile<Product, 4, COLS>(x + m * x_stride, x_stride, w, ahead, pace, w_stride, steps, acc + m);
  for (; m + 2 <= rows; forward(2))
    tile<Product, 2, COLS>(x + m * x_stride, x_stride, w, ahead, pace, w_stride, steps, acc + m);
  for (; m < rows; forward(1))
    tile<Product, 1, COLS>(x + m * x_stride, x_stride, w, ahead, pace, w_stride, steps, acc + m);
}

// The same for `count` rows of w, of which COLS are multiplied at once. next: what comes after them, null: not known.
template <class Product, int ROWS, int COLS>
void strips(int64_t rows, const typename Product::Value* x, int64_t x_stride, const typename Product::Element* w,
            const typename Product::Element* next, int64_t w_stride, int64_t count, int64_t steps,
            typename Product::Sums (*acc)[GROUP]) {
  using Acc = typename Product::Sums(*)[GROUP];
  int64_t n = 0;
  for (; n + COLS <= count; n += COLS)
    tiles<Product, ROWS, COLS>(rows, x, x_stride, w + n * w_stride,
                               next && n + 2 * COLS <= count ? w + (n + COLS) * w_stride : next, w_stride, steps,
                               (Acc)&acc[0][n]);
  for (; n < count; n++)
    tiles<Product, ROWS, 1>(rows, x, x_stride, w + n * w_stride, nullptr, w_stride, steps, (Acc)&acc[0][n]);
}

// The sums of the lanes of four vectors, each in the same order whatever the others are.
template <class Sums, class Total>
void sum_lanes(const Sums* v, Total* totals) {
  Ints even, odd, low, high;
  for (int i = 0; i < LANES; i++) {
    even[i] = i % 2 * LANES + i / 2 * 2, odd[i] = even[i] + 1;
    low[i] = i / 2 % 2 * LANES + i / 4 * 4 + i % 2, high[i] = low[i] + 2;
  }
  Sums pairs[2];
  for (int i = 0; i < 2; i++)
    pairs[i] = __builtin_shuffle(v[2 * i], v[2 * i + 1], even) + __builtin_shuffle(v[2 * i], v[2 * i + 1], odd);
  const Sums sums = __builtin_shuffle(pairs[0], pairs[1], low) + __builtin_shuffle(pairs[0], pairs[1], high);
  for (int n = 0; n < 4; n++) {
    totals[n] = sums[n];
    for (int i = 4 + n; i < LANES; i += 4) totals[n] += sums[i];
  }
}

// From one row of arranged x to the next: whole steps, and not a power of two, which caches hold few of.
template <class Product>
int64_t stride_of(int64_t k_size) {
  constexpr int64_t STEP = Product::PARTS * Product::WIDTH;
  return (k_size + STEP - 1) / STEP * STEP + STEP;
}

// How a product goes over the weight, by the rows of x and the bytes of one. What is fastest was measured
// (docs/performance.md): memory that is read in one stream is fetched ahead by the hardware, as long as x stays near.
struct Way {
  int64_t block;         // bytes of a row of the weight that are multiplied in one go
  bool fetch;            // ask for the weight ahead of time
  enum { ONE, TWO, FOUR, COLUMNS, MANY } columns;

  template <class Product>
  static Way of(int64_t rows, int64_t row_bytes) {
    constexpr int64_t RATIO = sizeof(typename Product::Value) / sizeof(typename Product::Element);
    if (WIDE && rows <= 4) {
      if (rows * row_bytes * RATIO <= X_CACHE) return {row_bytes, false, ONE};
      return {std::min(X_CACHE, 2 * X_CACHE / (rows * RATIO)), true, TWO};
    }
    const int64_t block = std::min<int64_t>(X_CACHE / (rows * RATIO), 2048);
    return {block, true, rows < 4 ? FOUR : WIDE && rows >= 16 ? MANY : COLUMNS};
  }
};

// result(m, n, total) takes the sums of rows [begin, end) of w. x: [rows][stride_of(k_size)], see arrange.
template <class Product, class Result>
void multiply_rows(const typename Product::Value* x, const typename Product::Element* w, int64_t rows, int64_t k_size,
                   int64_t begin, int64_t end, Result result) {
  using Element = typename Product::Element;
  using Sums = typename Product::Sums;
  constexpr int64_t STEP = Product::PARTS * Product::WIDTH;
  const int64_t whole = k_size / STEP, rest = k_size % STEP, x_stride = stride_of<Product>(k_size);
  const Way way = Way::of<Product>(rows, k_size * sizeof(Element));
  const int64_t block = std::max<int64_t>(1, way.block / int64_t(STEP * sizeof(Element)));
  for (int64_t first = begin; first < end; first += GROUP) {
    const int64_t count = std::min(GROUP, end - first);
    Sums acc[MAX_ROWS][GROUP];
    std::fill_n(&acc[0][0], rows * GROUP, Sums{});
    const auto multiply = [&](const Element* weights, const Element* next, int64_t stride, int64_t step,
                              int64_t steps) {
      const auto* values = x + step * STEP;
      switch (way.columns) {
        case Way::ONE: return strips<Product, 4, 1>(rows, values, x_stride, weights, nullptr, stride, count, steps, acc);
        case Way::TWO: return strips<Product, 4, 2>(rows, values, x_stride, weights, next, stride, count, steps, acc);
        case Way::FOUR: return strips<Product, 4, 4>(rows, values, x_stride, weights, next, stride, count, steps, acc);
        case Way::MANY: return strips<Product, 8, 3>(rows, values, x_stride, weights, next, stride, count, steps, acc);
        case Way::COLUMNS:
          return strips<Product, 4, Product::COLUMNS>(rows, values, x_stride, weights, next, stride, count, steps, acc);
      }
    };
    for (int64_t step = 0; step < whole; step += block) {
      const Element* weights = w + first * k_size + step * STEP;
      const bool last = step + block >= whole;
      multiply(weights, last ? w + (first + GROUP) * k_size : weights + block * STEP, k_size, step,
               std::min(block, whole - step));
    }
    if (rest) {
      Element padded[GROUP * STEP] = {};
      for (int64_t n = 0; n < count; n++)
        std::memcpy(padded + n * STEP, w + (first + n) * k_size + whole * STEP, rest * sizeof(Element));
      multiply(padded, nullptr, STEP, whole, 1);
    }
    for (int64_t m = 0; m < rows; m++) {
      typename Product::Total totals[GROUP];
      for (int64_t n = 0; n < count; n += 4) sum_lanes(acc[m] + n, totals + n);
      for (int64_t n = 0; n < count; n++) result(m, first + n, totals[n]);
    }
  }
}

// Memory for `rows` rows of arranged x, zeros, aligned to cache lines; kept for this thread's next call.
template <class Product>
typename Product::Value* arranged_rows(int64_t rows, int64_t k_size) {
  using Value = typename Product::Value;
  struct alignas(64) Line {
    char bytes[64];
  };
  static thread_local std::vector<Line> lines;
  lines.assign(rows * stride_of<Product>(k_size) * sizeof(Value) / sizeof(Line) + 1, Line{});
  return reinterpret_cast<Value*>(lines.data());
}

// x in the order in which it is multiplied, each row filled up with zeros to whole steps.
template <class Product, class Number>
const typename Product::Value* arrange(const Number* x, int64_t rows, int64_t k_size) {
  using Value = typename Product::Value;
  constexpr int64_t STEP = Product::PARTS * Product::WIDTH;
  const int64_t stride = stride_of<Product>(k_size);
  Value* arranged = arranged_rows<Product>(rows, k_size);
  for (int64_t m = 0; m < rows; m++) {
    const Number* from = x + m * k_size;
    Value* to = arranged + m * stride;
    for (int64_t k = 0; k < k_size; k += STEP) {
      Value values[STEP] = {};
      if (k + STEP <= k_size)
        for (int64_t i = 0; i < STEP; i++) values[i] = Value(from[k + i]);
      else
        for (int64_t i = 0; i < k_size - k; i++) values[i] = Value(from[k + i]);
      for (int part = 0; part < Product::PARTS; part++)
        for (int lane = 0; lane < Product::WIDTH; lane++)
          to[k + part * Product::WIDTH + lane] = values[Product::source(part, lane)];
    }
  }
  return arranged;
}

// finish(begin, end, totals) for stretches of w's rows, by all threads: totals[m * (end - begin) + n - begin] is
// sum_k x[m][k] * w[n][k]. x as `arrange` leaves it.
template <class Product, class Finish>
void multiply(const typename Product::Value* x, const typename Product::Element* w, int64_t rows, int64_t n_size,
              int64_t k_size, Finish finish) {
  using Total = typename Product::Total;
  const int64_t stride = stride_of<Product>(k_size);
  const int64_t group_bytes = std::max<int64_t>(1, GROUP * k_size * sizeof(typename Product::Element));
  // Many rows take turns at what the cache holds of the weight.
  const int64_t panel = std::max<int64_t>(1, PANEL / group_bytes) * GROUP;
  // Below this many bytes of weights a second thread does not pay.
  const int64_t grain = std::max<int64_t>(1, (64 << 10) / group_bytes);
  torch::stable::parallel_for(0, (n_size + GROUP - 1) / GROUP, grain, [&](int64_t first, int64_t last) {
    const int64_t stop = std::min(last * GROUP, n_size);
    std::vector<Total> totals(rows * std::min(panel, stop - first * GROUP));
    for (int64_t begin = first * GROUP; begin < stop; begin += panel) {
      const int64_t end = std::min(begin + panel, stop);
      for (int64_t m = 0; m < rows; m += MAX_ROWS)
        multiply_rows<Product>(x + m * stride, w, std::min(MAX_ROWS, rows - m), k_size, begin, end,
                               [&](int64_t row, int64_t n, Total total) {
                                 totals[(m + row) * (end - begin) + n - begin] = total;
                               });
      finish(begin, end, totals.data());
    }
  });
}

// multiply() with result(m, n, total) for each sum.
template <class Product, class Result>
void multiply_each(const typename Product::Value* x, const typename Product::Element* w, int64_t rows, int64_t n_size,
                   int64_t k_size, Result result) {
  using Total = typename Product::Total;
  multiply<Product>(x, w, rows, n_size, k_size, [=](int64_t begin, int64_t end, const Total* totals) {
    for (int64_t m = 0; m < rows; m++)
      for (int64_t n = begin; n < end; n++) result(m, n, *totals++);
  });
}

// Elements of the weight are turned into float32 in registers: the base of products that do.
struct FloatProduct {
  using Value = float;
  using Values = Floats;
  using Total = float;
  using Sums = Floats;
  static constexpr int WIDTH = LANES, COLUMNS = LANES == 8 ? 3 : 4;
  static Floats multiply_add(Floats sums, Floats x, Floats w) { return sums + x * w; }
};

// An empty result for rows of x times the rows of `weight`.
inline Tensor new_result(const Tensor& x, const Tensor& weight, ScalarType dtype) {
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = weight.size(0);
  return torch::stable::new_empty(x, sizes, dtype);
}

inline bool fit_together(const Tensor& x, const Tensor& weight) {
  return weight.dim() == 2 && x.dim() > 0 && x.size(x.dim() - 1) == weight.size(1);
}

}  // namespace
