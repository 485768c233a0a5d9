// Linear layers with few rows: y[m][n] = sum_k x[m][k] * w[n][k]. Their time is that of reading the weight, so each of
// its elements is read once, for all rows, and turned into float32 in registers; sums are float32.
//
// Vectors are those of GCC and Clang (vector_size), as wide as the machine's; only conversions from float16 and the
// product of integers need instructions by name. A vector of packed weights is unpacked by shifts, which leaves every
// PARTS-th element in one vector of floats; x is laid out in the same order once per call.

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

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

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

template <class V>
V load(const void* address) {
  V value;
  std::memcpy(&value, address, sizeof value);
  return value;
}

float sum(Floats v) {
  float total = 0;
  for (int i = 0; i < LANES; i++) total += v[i];
  return total;
}

// What a weight is made of. A step takes PARTS * LANES elements, loaded as Raw; element `source(part, lane)` of them is
// what `unpack` leaves in `lane` of vector `part`.

struct BFloat16 {
  using Element = uint16_t;
  using Raw = Words;
  static constexpr int PARTS = 2;
  static int source(int part, int lane) { return lane * PARTS + part; }
  static Floats unpack(Raw raw, int part) { return (Floats)(part ? raw & 0xffff0000u : raw << 16); }
};

struct Half {
  using Element = uint16_t;
  typedef uint16_t Raw __attribute__((vector_size(BYTES / 2)));
  static constexpr int PARTS = 1;
  static int source(int, int lane) { return lane; }
  static Floats unpack(Raw raw, int) {
#if defined(__AVX512F__)
    return (Floats)_mm512_cvtph_ps((__m256i)raw);
#elif defined(__AVX2__) && defined(__F16C__)
    return (Floats)_mm256_cvtph_ps((__m128i)raw);
#elif defined(__aarch64__)
    return (Floats)vcvt_f32_f16((float16x4_t)raw);
#else
    Floats result;
    for (int i = 0; i < LANES; i++) result[i] = c10::Half(raw[i], c10::Half::from_bits());
    return result;
#endif
  }
};

constexpr int64_t MAX_ROWS = 16;   // of x
constexpr int64_t GROUP = 16;      // rows of the weight that share a block of x
constexpr int64_t X_BLOCK = 4096;  // floats of x that stay in the first-level cache
constexpr int64_t W_BLOCK = 1024;  // bytes of a row of the weight that are multiplied in one go

// acc[m][n] += x[m][:] * w[n][:] over `steps` steps, for ROWS rows of x and COLS rows of w. The rows at `ahead` are
// fetched meanwhile; null: none.
template <class Weight, int ROWS, int COLS>
void tile(const float* x, int64_t x_stride, const typename Weight::Element* w, const typename Weight::Element* ahead,
          int64_t w_stride, int64_t steps, Floats (*acc)[GROUP]) {
  constexpr int64_t STEP = Weight::PARTS * LANES;
  Floats sums[ROWS][COLS];
  for (int m = 0; m < ROWS; m++)
    for (int n = 0; n < COLS; n++) sums[m][n] = acc[m][n];
  const auto multiply = [&](int64_t k) {
    typename Weight::Raw raw[COLS];
    for (int n = 0; n < COLS; n++) raw[n] = load<typename Weight::Raw>(w + n * w_stride + k);
    for (int part = 0; part < Weight::PARTS; part++) {
      Floats weights[COLS];
      for (int n = 0; n < COLS; n++) weights[n] = Weight::unpack(raw[n], part);
      for (int m = 0; m < ROWS; m++) {
        const Floats values = load<Floats>(x + m * x_stride + k + part * LANES);
        for (int n = 0; n < COLS; n++) sums[m][n] += values * weights[n];
      }
    }
  };
  if (ahead)
    for (int64_t k = 0; k < steps * STEP; k += STEP) {
      for (int n = 0; n < COLS; n++) __builtin_prefetch(ahead + n * w_stride + k);
      multiply(k);
    }
  else
    for (int64_t k = 0; k < steps * STEP; k += STEP) multiply(k);
  for (int m = 0; m < ROWS; m++)
    for (int n = 0; n < COLS; n++) acc[m][n] = sums[m][n];
}

// The same for any number of rows of x. Four of them take fewer rows of the weight where registers are few.
template <class Weight, int COLS>
void tiles(int64_t rows, const float* x, int64_t x_stride, const typename Weight::Element* w,
           const typename Weight::Element* ahead, int64_t w_stride, int64_t steps, Floats (*acc)[GROUP]) {
  constexpr int NARROW = COLS > 1 && LANES == 8 ? COLS / 2 : COLS;
  int64_t m = 0;
  for (; m + 4 <= rows; m += 4, ahead = nullptr)
    for (int n = 0; n < COLS; n += NARROW)
      tile<Weight, 4, NARROW>(x + m * x_stride, x_stride, w + n * w_stride, ahead ? ahead + n * w_stride : nullptr,
                              w_stride, steps, (Floats(*)[GROUP]) & acc[m][n]);
  for (; m + 2 <= rows; m += 2, ahead = nullptr)
    tile<Weight, 2, COLS>(x + m * x_stride, x_stride, w, ahead, w_stride, steps, acc + m);
  for (; m < rows; m++, ahead = nullptr)
    tile<Weight, 1, COLS>(x + m * x_stride, x_stride, w, ahead, w_stride, steps, acc + m);
}

// result(m, n, sum) takes the sums of rows [begin, end) of w. x: [rows][steps * PARTS * LANES] in the weight's order.
template <class Weight, class Result>
void rows_of_weight(const float* x, const typename Weight::Element* w, int64_t rows, int64_t k_size, int64_t begin,
                    int64_t end, Result result) {
  using Element = typename Weight::Element;
  constexpr int64_t STEP = Weight::PARTS * LANES;
  constexpr int COLS = 4;
  const int64_t whole = k_size / STEP, rest = k_size % STEP, x_stride = (whole + (rest > 0)) * STEP;
  const int64_t block = std::max<int64_t>(1, std::min(X_BLOCK / rows, W_BLOCK / int64_t(sizeof(Element))) / STEP);
  for (int64_t first = begin; first < end; first += GROUP) {
    const int64_t count = std::min(GROUP, end - first);
    Floats acc[MAX_ROWS][GROUP];
    std::fill_n(&acc[0][0], rows * GROUP, Floats{});
    // `next`: what is multiplied after these rows.
    const auto multiply = [&](const Element* weights, const Element* next, int64_t stride, int64_t step,
                              int64_t steps) {
      const float* part = x + step * STEP;
      int64_t n = 0;
      for (; n + COLS <= count; n += COLS)
        tiles<Weight, COLS>(rows, part, x_stride, weights + n * stride,
                            n + 2 * COLS <= count ? weights + (n + COLS) * stride : next, stride, steps,
                            (Floats(*)[GROUP]) & acc[0][n]);
      for (; n < count; n++)
        tiles<Weight, 1>(rows, part, x_stride, weights + n * stride, nullptr, stride, steps,
                         (Floats(*)[GROUP]) & acc[0][n]);
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
    for (int64_t m = 0; m < rows; m++)
      for (int64_t n = 0; n < count; n++) result(m, first + n, sum(acc[m][n]));
  }
}

// x as floats in the order in which the weight is unpacked, each row filled up with zeros to whole steps.
template <class Weight, class Number>
const float* arrange(const void* data, int64_t rows, int64_t k_size) {
  constexpr int64_t STEP = Weight::PARTS * LANES;
  const int64_t stride = (k_size + STEP - 1) / STEP * STEP;
  static thread_local std::vector<float> arranged;
  if (int64_t(arranged.size()) < rows * stride) arranged.resize(rows * stride);
  for (int64_t m = 0; m < rows; m++) {
    const auto* from = static_cast<const Number*>(data) + m * k_size;
    float* to = arranged.data() + m * stride;
    for (int64_t k = 0; k < stride; k += STEP) {
      float values[STEP] = {};
      if (k + STEP <= k_size)
        for (int64_t i = 0; i < STEP; i++) values[i] = float(from[k + i]);
      else
        for (int64_t i = 0; i < k_size - k; i++) values[i] = float(from[k + i]);
      for (int part = 0; part < Weight::PARTS; part++)
        for (int lane = 0; lane < LANES; lane++) to[k + part * LANES + lane] = values[Weight::source(part, lane)];
    }
  }
  return arranged.data();
}

template <class Weight, class Number>
Tensor multiply(const Tensor& input, const Tensor& matrix, const Tensor* bias) {
  const Tensor x = torch::stable::contiguous(input), weight = torch::stable::contiguous(matrix);
  const int64_t n_size = weight.size(0), k_size = weight.size(1);
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = n_size;
  Tensor y = torch::stable::new_empty(x, sizes);
  const int64_t rows = x.numel() / k_size;
  const auto* w_data = static_cast<const typename Weight::Element*>(weight.const_data_ptr());
  auto* y_data = static_cast<Number*>(y.mutable_data_ptr());
  const auto* bias_data = bias ? static_cast<const Number*>(bias->const_data_ptr()) : nullptr;
  const auto result = [=](int64_t m, int64_t n, float value) {
    if (bias_data) value += float(bias_data[n]);
    y_data[m * n_size + n] = Number(value);
  };
  // Below this many bytes of weights a second thread does not pay.
  const int64_t grain = std::max<int64_t>(1, (64 << 10) / (GROUP * k_size * int64_t(sizeof(*w_data))));
  const int64_t groups = (n_size + GROUP - 1) / GROUP;
  for (int64_t m = 0; m < rows; m += MAX_ROWS) {
    const int64_t count = std::min(MAX_ROWS, rows - m);
    const auto* x_data = static_cast<const Number*>(x.const_data_ptr()) + m * k_size;
    const float* arranged = arrange<Weight, Number>(x_data, count, k_size);
    torch::stable::parallel_for(0, groups, grain, [&](int64_t begin, int64_t end) {
      rows_of_weight<Weight>(arranged, w_data, count, k_size, begin * GROUP, std::min(end * GROUP, n_size),
                             [=](int64_t row, int64_t n, float value) { result(m + row, n, value); });
    });
  }
  return y;
}

Tensor few_rows_linear(Tensor x, Tensor weight, std::optional<Tensor> bias) {
  const Tensor* b = bias ? &*bias : nullptr;
  const ScalarType type = weight.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::BFloat16 || type == ScalarType::Half, "few_rows_linear: the weight is not 16 bit");
  STD_TORCH_CHECK(x.scalar_type() == type && (!b || b->scalar_type() == type), "few_rows_linear: dtypes differ");
  STD_TORCH_CHECK(weight.dim() == 2 && x.dim() > 0 && x.size(x.dim() - 1) == weight.size(1) &&
                      (!b || b->numel() == weight.size(0)),
                  "few_rows_linear: sizes do not fit together");
  if (type == ScalarType::BFloat16) return multiply<BFloat16, c10::BFloat16>(x, weight, b);
  return multiply<Half, c10::Half>(x, weight, b);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gemma, CPU, m) {
  m.impl("few_rows_linear", TORCH_BOX(&few_rows_linear));
}
