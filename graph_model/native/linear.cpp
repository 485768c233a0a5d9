// Linear layers in 16 bit: elements of the weight are turned into float32 in registers; sums are float32.

#include "product.h"

namespace {

struct FloatProduct {
  using Value = float;
  using Values = Floats;
  using Total = float;
  using Sums = Floats;
  static constexpr int WIDTH = LANES, COLUMNS = LANES == 8 ? 3 : 4;
  static Floats multiply_add(Floats sums, Floats x, Floats w) { return sums + x * w; }
};

// A vector of pairs is unpacked by shifts, which leaves every second element in one vector.
struct BFloat16Product : FloatProduct {
  using Element = uint16_t;
  static constexpr int PARTS = 2;
  static int source(int part, int lane) { return lane * PARTS + part; }
  static Floats unpack(const Element* w, int part) {
    const Words pairs = load<Words>(w);
    return (Floats)(part ? pairs & 0xffff0000u : pairs << 16);
  }
};

struct HalfProduct : FloatProduct {
  using Element = uint16_t;
  typedef uint16_t Raw __attribute__((vector_size(BYTES / 2)));
  static constexpr int PARTS = 1;
  static int source(int, int lane) { return lane; }
  static Floats unpack(const Element* w, int) {
    const Raw raw = load<Raw>(w);
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

// int8 weights with a scale for each row, which multiplies the sum.
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

template <class Product, class Number>
Tensor linear(const Tensor& input, const Tensor& matrix, const Tensor* scale, const Tensor* bias) {
  const Tensor x = torch::stable::contiguous(input), weight = torch::stable::contiguous(matrix);
  const int64_t n_size = weight.size(0), k_size = weight.size(1);
  Tensor y = new_result(x, weight, x.scalar_type());
  auto* y_data = static_cast<Number*>(y.mutable_data_ptr());
  const auto* scale_data = scale ? static_cast<const float*>(scale->const_data_ptr()) : nullptr;
  const auto* bias_data = bias ? static_cast<const Number*>(bias->const_data_ptr()) : nullptr;
  multiply<Product>(static_cast<const Number*>(x.const_data_ptr()),
                    static_cast<const typename Product::Element*>(weight.const_data_ptr()), x.numel() / k_size, n_size,
                    k_size, [=](int64_t m, int64_t n, float total) {
                      if (scale_data) total *= scale_data[n];
                      if (bias_data) total += float(bias_data[n]);
                      y_data[m * n_size + n] = Number(total);
                    });
  return y;
}

Tensor few_rows_linear(Tensor x, Tensor weight, std::optional<Tensor> bias) {
  const Tensor* b = bias ? &*bias : nullptr;
  const ScalarType type = weight.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::BFloat16 || type == ScalarType::Half, "few_rows_linear: the weight is not 16 bit");
  STD_TORCH_CHECK(x.scalar_type() == type && (!b || b->scalar_type() == type), "few_rows_linear: dtypes differ");
  STD_TORCH_CHECK(fit_together(x, weight) && (!b || b->numel() == weight.size(0)),
                  "few_rows_linear: sizes do not fit together");
  if (type == ScalarType::BFloat16) return linear<BFloat16Product, c10::BFloat16>(x, weight, nullptr, b);
  return linear<HalfProduct, c10::Half>(x, weight, nullptr, b);
}

Tensor few_rows_int8_weight_linear(Tensor x, Tensor weight, Tensor scale, std::optional<Tensor> bias) {
  const Tensor* b = bias ? &*bias : nullptr;
  const ScalarType type = x.scalar_type();
  STD_TORCH_CHECK(weight.scalar_type() == ScalarType::Char && scale.scalar_type() == ScalarType::Float &&
                      (!b || b->scalar_type() == type),
                  "few_rows_int8_weight_linear: dtypes differ");
  STD_TORCH_CHECK(fit_together(x, weight) && scale.numel() == weight.size(0) && (!b || b->numel() == weight.size(0)),
                  "few_rows_int8_weight_linear: sizes do not fit together");
  const Tensor scales = torch::stable::contiguous(scale);
  if (type == ScalarType::BFloat16) return linear<Int8WeightProduct, c10::BFloat16>(x, weight, &scales, b);
  if (type == ScalarType::Half) return linear<Int8WeightProduct, c10::Half>(x, weight, &scales, b);
  STD_TORCH_CHECK(type == ScalarType::Float, "few_rows_int8_weight_linear: x is not floating point");
  return linear<Int8WeightProduct, float>(x, weight, &scales, b);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gemma, CPU, m) {
  m.impl("few_rows_linear", TORCH_BOX(&few_rows_linear));
  m.impl("few_rows_int8_weight_linear", TORCH_BOX(&few_rows_int8_weight_linear));
}
