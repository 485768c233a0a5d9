// Linear layers of floating-point x and int8 weights, which have a scale for each row.

#include "byte_product.h"

#include <cmath>
#include <limits>

namespace {

#if HAS_BYTE_PRODUCT
// x in fixed point, 24 bits below the row's largest magnitude: three bytes, each a row of the product, which is exact. The
// error of an element, 2^-24 of the largest, is what summing in float32 costs, too.
constexpr int64_t PLANES = 3;
constexpr double HALF_RANGE = (1 << 23) - 1;

// Rows of bytes, least significant first; returns the value of a unit. What is not finite makes the unit NaN.
template <class Number>
double to_fixed_point(const Number* x, int64_t k_size, uint8_t* planes, int64_t stride) {
  float largest = 0;
  bool finite = true;
  for (int64_t k = 0; k < k_size; k++) {
    const float magnitude = std::fabs(float(x[k]));
    finite &= magnitude <= std::numeric_limits<float>::max();
    largest = std::max(largest, magnitude);
  }
  if (!finite) return std::numeric_limits<double>::quiet_NaN();
  const double units = largest > 0 ? HALF_RANGE / largest : 0;
  for (int64_t k = 0; k < k_size; k++) {
    const double scaled = double(float(x[k])) * units;
    const uint32_t bits = uint32_t(int32_t(scaled + (scaled < 0 ? -0.5 : 0.5)) + (1 << 23));
    for (int64_t plane = 0; plane < PLANES; plane++) planes[plane * stride + k] = uint8_t(bits >> 8 * plane);
  }
  return largest / HALF_RANGE;
}

// finish(m, n, sum_k x[m][k] * w[n][k]).
template <class Number, class Finish>
void multiply_weights(const Number* x, const int8_t* w, int64_t rows, int64_t n_size, int64_t k_size, Finish finish) {
  const int64_t stride = stride_of<ByteProduct>(k_size);
  uint8_t* bytes = arranged_rows<ByteProduct>(PLANES * rows + 1, k_size);
  std::vector<double> units(rows);
  for (int64_t m = 0; m < rows; m++)
    units[m] = to_fixed_point(x + m * k_size, k_size, bytes + m * PLANES * stride, stride);
  std::fill_n(bytes + PLANES * rows * stride, k_size, uint8_t(1));
  multiply<ByteProduct>(bytes, w, PLANES * rows + 1, n_size, k_size,
                        [&](int64_t begin, int64_t end, const int32_t* totals) {
                          const int64_t width = end - begin;
                          const int32_t* weights = totals + PLANES * rows * width;
                          for (int64_t m = 0; m < rows; m++, totals += PLANES * width)
                            for (int64_t n = 0; n < width; n++) {
                              int64_t sum = -(int64_t(weights[n]) << 23);
                              for (int64_t plane = 0; plane < PLANES; plane++)
                                sum += int64_t(totals[plane * width + n]) << 8 * plane;
                              finish(m, begin + n, float(double(sum) * units[m]));
                            }
                        });
}
#else
struct Int8WeightProduct : FloatProduct {
  using Element = int8_t;
  typedef int8_t Raw __attribute__((vector_size(LANES)));
  static constexpr int PARTS = 4;
  static int source(int part, int lane) { return part * LANES + lane; }
  static Floats unpack(const Element* w, int part) {
    const Raw raw = load<Raw>(w + part * LANES);
#if defined(__AVX512F__)
    return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)raw));
#elif defined(__AVX2__)
    return (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)&raw)));
#else
    return __builtin_convertvector(raw, Floats);
#endif
  }
};

// finish(m, n, sum_k x[m][k] * w[n][k]).
template <class Number, class Finish>
void multiply_weights(const Number* x, const int8_t* w, int64_t rows, int64_t n_size, int64_t k_size, Finish finish) {
  multiply_each<Int8WeightProduct>(arrange<Int8WeightProduct>(x, rows, k_size), w, rows, n_size, k_size, finish);
}
#endif

template <class Number>
Tensor linear(const Tensor& input, const Tensor& matrix, const Tensor& scale, const Tensor* bias) {
  const Tensor x = torch::stable::contiguous(input), weight = torch::stable::contiguous(matrix);
  const int64_t n_size = weight.size(0), k_size = weight.size(1);
  Tensor y = new_result(x, weight, x.scalar_type());
  auto* y_data = static_cast<Number*>(y.mutable_data_ptr());
  const auto* scales = static_cast<const float*>(scale.const_data_ptr());
  const auto* bias_data = bias ? static_cast<const Number*>(bias->const_data_ptr()) : nullptr;
  multiply_weights(static_cast<const Number*>(x.const_data_ptr()), static_cast<const int8_t*>(weight.const_data_ptr()),
                   x.numel() / k_size, n_size, k_size, [=](int64_t m, int64_t n, float sum) {
                     y_data[m * n_size + n] = Number(sum * scales[n] + (bias_data ? float(bias_data[n]) : 0.f));
                   });
  return y;
}

Tensor skinny_int8_weight_linear(Tensor x, Tensor weight, Tensor scale, std::optional<Tensor> bias) {
  const Tensor* b = bias ? &*bias : nullptr;
  const ScalarType type = x.scalar_type();
  STD_TORCH_CHECK(weight.scalar_type() == ScalarType::Char && scale.scalar_type() == ScalarType::Float &&
                      (!b || b->scalar_type() == type),
                  "skinny_int8_weight_linear: dtypes differ");
  STD_TORCH_CHECK(fit_together(x, weight) && scale.numel() == weight.size(0) && (!b || b->numel() == weight.size(0)),
                  "skinny_int8_weight_linear: sizes do not fit together");
  const Tensor scales = torch::stable::contiguous(scale);
  if (type == ScalarType::BFloat16) return linear<c10::BFloat16>(x, weight, scales, b);
  if (type == ScalarType::Half) return linear<c10::Half>(x, weight, scales, b);
  STD_TORCH_CHECK(type == ScalarType::Float, "skinny_int8_weight_linear: x is not floating point");
  return linear<float>(x, weight, scales, b);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gemma, CPU, m) {
  m.impl("skinny_int8_weight_linear", TORCH_BOX(&skinny_int8_weight_linear));
}
