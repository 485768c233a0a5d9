// Products of int8 weights by the instruction that multiplies unsigned with signed bytes (VNNI): x as bytes from 0 on, an
// offset too large, which sums over the weight take away again. They come out of the product as those of one more row of
// x, all ones.

#pragma once

#include "product.h"

#if defined(__AVX512VNNI__)
#define HAS_BYTE_PRODUCT 1

namespace {

struct ByteProduct {
  using Element = int8_t;
  using Value = uint8_t;
  typedef uint8_t Values __attribute__((vector_size(BYTES)));
  using Total = int32_t;
  using Sums = Ints;
  static constexpr int PARTS = 1, WIDTH = 4 * LANES, COLUMNS = 4;
  static int source(int, int lane) { return lane; }
  static Values unpack(const Element* w, int) { return load<Values>(w); }
  // Each int32 takes four products of neighbours.
  static Ints multiply_add(Ints sums, Values x, Values w) {
    return (Ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)x, (__m512i)w);
  }
};

}  // namespace

#endif
