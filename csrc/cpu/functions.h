// Exponentials and their kin on vectors, in float and double.
#pragma once
#include "vec.h"

namespace stylegen {
namespace cpu {
namespace STYLEGEN_ISA {

constexpr double kSelu = 1.0507009873554804934193349852946, kSeluAlpha = 1.6732632423543772848170429916717;
constexpr double kSoftplusLinear = 20;  // PyTorch's softplus is the identity above

template <class A>
STYLEGEN_INLINE Vec<A> absolute(Vec<A> x) {
  return select(x < Vec<A>{}, Vec<A>{} - x, x);
}

// x = k log(2) + r with |r| <= log(2) / 2; there the Taylor series of e^r is exact to the last bit after 8 (float) or
// 14 (double) terms.
template <class A>
struct Exponential {
  static constexpr bool kSingle = sizeof(A) == 4;
  static constexpr A kLow = kSingle ? A(-87) : A(-708), kHigh = kSingle ? A(88.72283) : A(709.78);
  Vec<A> series;      // e^r - 1
  Vec<A> half_power;  // 2^(k - 1): 2^k itself may overflow where the result does not

  STYLEGEN_INLINE explicit Exponential(Vec<A> x) {
    x = select(x < splat(kLow), splat(kLow), select(x > splat(kHigh), splat(kHigh), x));
    // Adding 1.5 * 2^(bits of the mantissa) rounds to an integer and leaves it in the low bits.
    const A magic = kSingle ? A(12582912) : A(6755399441055744);
    const Vec<A> shifted = x * A(1.4426950408889634) + magic;
    const Vec<A> k = shifted - magic;
    // log(2) in two parts, the first with so few bits that k times it is exact.
    const Vec<A> r = (x - k * A(kSingle ? 0.693359375 : 6.93147180369123816490e-01)) -
                     k * A(kSingle ? -2.12194440054690583e-4 : 1.90821492927058770002e-10);
    constexpr double factorial[] = {1,     1,      2,       6,        24,        120,        720,        5040,
                                    40320, 362880, 3628800, 39916800, 479001600, 6227020800, 87178291200};
    constexpr int terms = kSingle ? 8 : 14;
    Vec<A> tail = splat(A(1 / factorial[terms]));
    for (int i = terms - 1; i >= 2; i--) tail = tail * r + A(1 / factorial[i]);
    series = tail * r * r + r;
    using I = typename BitsOf<A>::type;
    const Ints<A> integer = bit_cast<Ints<A>>(shifted) - bit_cast<Ints<A>>(splat(magic));
    half_power = bit_cast<Vec<A>>((integer + I(kSingle ? 126 : 1022)) << I(kSingle ? 23 : 52));
  }

  // Infinity, NaN and what is too small are not the business of the series.
  STYLEGEN_INLINE static Vec<A> finish(Vec<A> x, Vec<A> result, A lowest) {
    const Vec<A> infinity = splat(A(INFINITY));
    const Vec<A> large = select(x > splat(kHigh), infinity, result);
    return select(x < splat(kLow), splat(lowest), select(x < infinity, large, x));
  }
};

template <class A>
STYLEGEN_INLINE Vec<A> exp(Vec<A> x) {
  const Exponential<A> e(x);
  return Exponential<A>::finish(x, (e.series * e.half_power + e.half_power) * A(2), 0);
}

template <class A>
STYLEGEN_INLINE Vec<A> expm1(Vec<A> x) {
  const Exponential<A> e(x);
  return Exponential<A>::finish(x, (e.series * e.half_power + (e.half_power - A(0.5))) * A(2), -1);
}

template <class A>
STYLEGEN_INLINE Vec<A> sigmoid(Vec<A> x) {
  return A(1) / (exp<A>(Vec<A>{} - x) + A(1));
}

template <class A>
STYLEGEN_INLINE Vec<A> tanh(Vec<A> x) {
  const Vec<A> twice = absolute<A>(x) * A(2), most = splat(A(80));  // e^80 + 2 = e^80
  const Vec<A> m = expm1<A>(select(twice > most, most, twice));
  const Vec<A> t = m / (m + A(2));
  return select(x < Vec<A>{}, Vec<A>{} - t, t);
}

// 1 - tanh(x)^2 without the cancellation.
template <class A>
STYLEGEN_INLINE Vec<A> sech_squared(Vec<A> x) {
  const Vec<A> e = exp<A>(absolute<A>(x) * A(-2));
  return e * A(4) / ((e + A(1)) * (e + A(1)));
}

// max(x, 0) + log(1 + u) with u = e^-|x| <= 1, and log(1 + u) = 2 artanh(u / (2 + u)) by its series.
template <class A>
STYLEGEN_INLINE Vec<A> softplus(Vec<A> x) {
  const Vec<A> zero = {}, u = exp<A>(absolute<A>(x) * A(-1));
  const Vec<A> s = u / (u + A(2)), square = s * s;
  constexpr int terms = sizeof(A) == 4 ? 8 : 17;
  Vec<A> series = splat(A(1.0 / (2 * terms + 1)));
  for (int i = terms - 1; i >= 1; i--) series = series * square + A(1.0 / (2 * i + 1));
  const Vec<A> log1p = (series * square * s + s) * A(2);
  return select(x > splat(A(kSoftplusLinear)), x, select(x > zero, x, zero) + log1p);
}

}  // namespace STYLEGEN_ISA
}  // namespace cpu
}  // namespace stylegen
