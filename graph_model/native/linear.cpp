// Linear layers in 16 bit; sums are float32, and rounded once to 16 bit or left as they are.

#include "product.h"

namespace {

#if defined(__AVX512BF16__)
// The instruction multiplies pairs of neighbours and adds both products to a sum.
struct BFloat16Product {
  using Element = uint16_t;
  using Value = c10::BFloat16;
  typedef uint16_t Values __attribute__((vector_size(BYTES)));
  using Total = float;
  using Sums = Floats;
  static constexpr int PARTS = 1, WIDTH = 2 * LANES, COLUMNS = 4;
  static int source(int, int lane) { return lane; }
  static Values unpack(const Element* w, int) { return load<Values>(w); }
  static Floats multiply_add(Floats sums, Values x, Values w) {
    return (Floats)_mm512_dpbf16_ps((__m512)sums, (__m512bh)x, (__m512bh)w);
  }
};
#else
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
#endif

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

template <class Product, class Number, class Result>
Tensor linear(const Tensor& input, const Tensor& matrix, const Tensor* bias, ScalarType dtype) {
  const Tensor x = torch::stable::contiguous(input), weight = torch::stable::contiguous(matrix);
  const int64_t n_size = weight.size(0), k_size = weight.size(1), rows = x.numel() / k_size;
  Tensor y = new_result(x, weight, dtype);
  auto* y_data = static_cast<Result*>(y.mutable_data_ptr());
  const auto* bias_data = bias ? static_cast<const Number*>(bias->const_data_ptr()) : nullptr;
  multiply_each<Product>(arrange<Product>(static_cast<const Number*>(x.const_data_ptr()), rows, k_size),
                         static_cast<const typename Product::Element*>(weight.const_data_ptr()), rows, n_size, k_size,
                         [=](int64_t m, int64_t n, float total) {
                           y_data[m * n_size + n] = Result(total + (bias_data ? float(bias_data[n]) : 0.f));
                         });
  return y;
}

Tensor skinny_linear(Tensor x, Tensor weight, std::optional<Tensor> bias, ScalarType dtype) {
  const Tensor* b = bias ? &*bias : nullptr;
  const ScalarType type = weight.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::BFloat16 || type == ScalarType::Half, "skinny_linear: the weight is not 16 bit");
  STD_TORCH_CHECK(x.scalar_type() == type && (!b || b->scalar_type() == type), "skinny_linear: dtypes differ");
  STD_TORCH_CHECK(fit_together(x, weight) && (!b || b->numel() == weight.size(0)),
                  "skinny_linear: sizes do not fit together");
  STD_TORCH_CHECK(dtype == type || dtype == ScalarType::Float, "skinny_linear: the result has x's dtype or is float32");
  const auto run = [&](auto product, auto number) {
    using Product = decltype(product);
    using Number = decltype(number);
    if (dtype == ScalarType::Float) return linear<Product, Number, float>(x, weight, b, dtype);
    return linear<Product, Number, Number>(x, weight, b, dtype);
  };
  return type == ScalarType::BFloat16 ? run(BFloat16Product(), c10::BFloat16()) : run(HalfProduct(), c10::Half());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gemma, CPU, m) { m.impl("skinny_linear", TORCH_BOX(&skinny_linear)); }
