// Linear layers in int8: exact sums in int32, scaled as gemma::int8_linear says, to the last bit.

#include "byte_product.h"

namespace {

#if HAS_BYTE_PRODUCT
// result(m, n, sum_k q[m][k] * w[n][k]); q + 128 is a byte from 0 on.
template <class Result>
void multiply_int8(const int8_t* q, const int8_t* w, int64_t rows, int64_t n_size, int64_t k_size, Result result) {
  const int64_t stride = stride_of<ByteProduct>(k_size);
  uint8_t* x = arranged_rows<ByteProduct>(rows + 1, k_size);
  for (int64_t m = 0; m < rows; m++)
    for (int64_t k = 0; k < k_size; k++) x[m * stride + k] = uint8_t(q[m * k_size + k] + 128);
  std::fill_n(x + rows * stride, k_size, uint8_t(1));
  multiply<ByteProduct>(x, w, rows + 1, n_size, k_size, [=](int64_t begin, int64_t end, const int32_t* totals) {
    const int32_t* weights = totals + rows * (end - begin);
    for (int64_t m = 0; m < rows; m++)
      for (int64_t n = begin; n < end; n++) result(m, n, *totals++ - 128 * weights[n - begin]);
  });
}
#else
struct Int8Product {
  using Element = int8_t;
  using Value = int16_t;
  using Values = Shorts;
  using Total = int32_t;
  using Sums = Ints;
  static constexpr int PARTS = 2, WIDTH = 2 * LANES, COLUMNS = LANES == 8 ? 2 : 4;
  static int source(int part, int lane) { return lane * PARTS + part; }
  static Shorts unpack(const Element* w, int part) {
    const Shorts pairs = load<Shorts>(w);
    return part ? pairs >> 8 : pairs << 8 >> 8;
  }
  // Each int32 takes two products of neighbours.
  static Ints multiply_add(Ints sums, Shorts x, Shorts w) {
#if defined(__AVX512BW__)
    return sums + (Ints)_mm512_madd_epi16((__m512i)x, (__m512i)w);
#elif defined(__AVX2__) && !defined(__AVX512F__)
    return sums + (Ints)_mm256_madd_epi16((__m256i)x, (__m256i)w);
#else
    return sums + ((Ints)x << 16 >> 16) * ((Ints)w << 16 >> 16) + ((Ints)x >> 16) * ((Ints)w >> 16);
#endif
  }
};

template <class Result>
void multiply_int8(const int8_t* q, const int8_t* w, int64_t rows, int64_t n_size, int64_t k_size, Result result) {
  multiply_each<Int8Product>(arrange<Int8Product>(q, rows, k_size), w, rows, n_size, k_size, result);
}
#endif

// Keeps the compiler from joining a product with the sum after it, which would round once instead of twice.
inline float rounded(float value) {
  asm volatile("" : "+m"(value));
  return value;
}

// Calls do(element type of the tensor's dtype).
template <class Do>
void with_float_type(ScalarType dtype, Do call) {
  if (dtype == ScalarType::BFloat16) return call(c10::BFloat16());
  if (dtype == ScalarType::Half) return call(c10::Half());
  STD_TORCH_CHECK(dtype == ScalarType::Float, "native_int8_linear: a floating-point dtype is wanted");
  call(float());
}

const Tensor* contiguous_in(std::optional<Tensor>& tensor, ScalarType dtype, int64_t size) {
  if (!tensor) return nullptr;
  STD_TORCH_CHECK(tensor->scalar_type() == dtype, "native_int8_linear: dtypes differ");
  STD_TORCH_CHECK(tensor->numel() == size, "native_int8_linear: sizes do not fit together");
  tensor = torch::stable::contiguous(*tensor);
  return &*tensor;
}

Tensor native_int8_linear(Tensor input, Tensor matrix, std::optional<Tensor> int_bias, Tensor scale,
                          std::optional<Tensor> row_scale, std::optional<Tensor> bias, ScalarType dtype) {
  STD_TORCH_CHECK(input.scalar_type() == ScalarType::Char && matrix.scalar_type() == ScalarType::Char,
                  "native_int8_linear: dtypes differ");
  STD_TORCH_CHECK(fit_together(input, matrix), "native_int8_linear: sizes do not fit together");
  const Tensor x = torch::stable::contiguous(input), weight = torch::stable::contiguous(matrix);
  const int64_t n_size = weight.size(0), k_size = weight.size(1), rows = x.numel() / k_size;
  std::optional<Tensor> channel_scale = scale;
  const auto* scales = static_cast<const float*>(contiguous_in(channel_scale, ScalarType::Float, n_size)->const_data_ptr());
  const Tensor* offsets = contiguous_in(int_bias, ScalarType::Int, n_size);
  const Tensor* row_scales = contiguous_in(row_scale, ScalarType::Float, rows);
  const auto* offset_data = offsets ? static_cast<const int32_t*>(offsets->const_data_ptr()) : nullptr;
  const auto* row_data = row_scales ? static_cast<const float*>(row_scales->const_data_ptr()) : nullptr;
  std::vector<float> biases(bias ? n_size : 0);
  if (bias)
    with_float_type(bias->scalar_type(), [&](auto number) {
      const auto* from = static_cast<const decltype(number)*>(
          contiguous_in(bias, bias->scalar_type(), n_size)->const_data_ptr());
      for (int64_t n = 0; n < n_size; n++) biases[n] = float(from[n]);
    });
  Tensor y = new_result(x, weight, dtype);
  with_float_type(dtype, [&](auto number) {
    using Number = decltype(number);
    auto* y_data = static_cast<Number*>(y.mutable_data_ptr());
    multiply_int8(static_cast<const int8_t*>(x.const_data_ptr()), static_cast<const int8_t*>(weight.const_data_ptr()),
                  rows, n_size, k_size, [=, &biases](int64_t m, int64_t n, int32_t total) {
                    float value = float(offset_data ? total + offset_data[n] : total) * scales[n];
                    if (row_data) value *= row_data[m];
                    if (!biases.empty()) value = rounded(value) + biases[n];
                    y_data[m * n_size + n] = Number(value);
                  });
  });
  return y;
}

Tensor native_int_linear(Tensor input, Tensor matrix, std::optional<Tensor> bias) {
  STD_TORCH_CHECK(input.scalar_type() == ScalarType::Char && matrix.scalar_type() == ScalarType::Char,
                  "native_int_linear: dtypes differ");
  STD_TORCH_CHECK(fit_together(input, matrix), "native_int_linear: sizes do not fit together");
  const Tensor x = torch::stable::contiguous(input), weight = torch::stable::contiguous(matrix);
  const int64_t n_size = weight.size(0), k_size = weight.size(1), rows = x.numel() / k_size;
  const Tensor* offsets = contiguous_in(bias, ScalarType::Int, n_size);
  const auto* offset_data = offsets ? static_cast<const int32_t*>(offsets->const_data_ptr()) : nullptr;
  Tensor y = new_result(x, weight, ScalarType::Int);
  auto* y_data = static_cast<int32_t*>(y.mutable_data_ptr());
  multiply_int8(static_cast<const int8_t*>(x.const_data_ptr()), static_cast<const int8_t*>(weight.const_data_ptr()),
                rows, n_size, k_size, [=](int64_t m, int64_t n, int32_t total) {
                  y_data[m * n_size + n] = offset_data ? total + offset_data[n] : total;
                });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gemma, CPU, m) {
  m.impl("native_int8_linear", TORCH_BOX(&native_int8_linear));
  m.impl("native_int_linear", TORCH_BOX(&native_int_linear));
}
