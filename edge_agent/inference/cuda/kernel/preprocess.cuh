// Computes one pixel of a network's input from an image: resize, place, scale, clip, replicate, store.
//
// Compiled for the GPU (preprocess.cu) and, for tests without a GPU, for the CPU (preprocess_twin.cpp). It includes
// nothing and is plain C++14, which every nvcc from CUDA 10.2 on compiles.
#pragma once

#ifdef __CUDACC__
#define PREPROCESS_INLINE __device__ __forceinline__
#else
#define PREPROCESS_INLINE inline
#endif

namespace preprocess {

enum Samples : int { kGray8 = 0, kGray16 = 1, kRgb8 = 2 };
enum Filter : int { kBilinear = 0, kArea = 1, kSmooth = 2 };

// Mirrored byte for byte by ARGUMENTS in cuda/preprocess.py. Sizes and positions in px; pitch and step in bytes.
struct Arguments {
  const unsigned char *source;
  void *target;  // (channels, net_h, net_w), all of it is written
  int pitch;     // from one source row to the next
  int step;      // from one source pixel to the next
  int source_w;
  int source_h;
  int samples;
  int filter;
  int net_w;
  int net_h;
  int inner_w;  // size of the resized image inside the network's input, whose padding is 0
  int inner_h;
  int pad_x;
  int pad_y;
  int channels;  // 3, or 1: then RGB becomes luma
  float scale;   // stored = clip(value * scale + bias, 0, top)
  float bias;
  float top;
};
static_assert(sizeof(Arguments) == 80, "ARGUMENTS in cuda/preprocess.py has another layout");

using Size = decltype(sizeof(0));

struct Gray8 {
  PREPROCESS_INLINE static float at(const unsigned char *pixel) { return pixel[0]; }
};

// Byte by byte, because a row may begin at an odd address, from which a GPU cannot load two bytes at once.
struct Gray16 {
  PREPROCESS_INLINE static float at(const unsigned char *pixel) { return pixel[0] | pixel[1] << 8; }
};

template <int channel>
struct Rgb8 {
  PREPROCESS_INLINE static float at(const unsigned char *pixel) { return pixel[channel]; }
};

PREPROCESS_INLINE int smaller(int a, int b) { return a < b ? a : b; }
PREPROCESS_INLINE int larger(int a, int b) { return a > b ? a : b; }

PREPROCESS_INLINE const unsigned char *row(const Arguments &a, int y) {
  return a.source + static_cast<Size>(y) * static_cast<Size>(a.pitch);
}

struct Taps {
  int lower;
  int upper;
  float weight;  // of the upper
};

// Half-pixel centres, clamped at the edge: (at + 0.5) * source / inner - 0.5, kept exact as a fraction of 2 * inner.
PREPROCESS_INLINE Taps taps(int at, int source, int inner) {
  const int whole = 2 * inner;
  const int centre = smaller(larger((2 * at + 1) * source - inner, 0), (source - 1) * whole);
  Taps result;
  result.lower = centre / whole;
  result.upper = smaller(result.lower + 1, source - 1);
  result.weight = static_cast<float>(centre - result.lower * whole) / static_cast<float>(whole);
  return result;
}

PREPROCESS_INLINE float mix(float lower, float upper, float weight) { return lower + (upper - lower) * weight; }

template <typename Sample>
PREPROCESS_INLINE float bilinear(const Arguments &a, int x, int y) {
  const Taps tx = taps(x, a.source_w, a.inner_w);
  const Taps ty = taps(y, a.source_h, a.inner_h);
  const int left = tx.lower * a.step, right = tx.upper * a.step;
  const unsigned char *above = row(a, ty.lower), *below = row(a, ty.upper);
  return mix(mix(Sample::at(above + left), Sample::at(above + right), tx.weight),
             mix(Sample::at(below + left), Sample::at(below + right), tx.weight), ty.weight);
}

PREPROCESS_INLINE int within(int at, int size) { return smaller(larger(at, 0), size - 1); }

// Bilinear in the source smoothed with the weights 1, 2, 1: each of the two taps is a mean of three px.
PREPROCESS_INLINE void smooth_taps(int at, int source, int inner, int *positions, float *weights) {
  const Taps t = taps(at, source, inner);
  const float upper = t.weight * 0.25f, lower = 0.25f - upper;
  const int last = t.upper;  // at the edge the upper tap is the lower one
  positions[0] = within(t.lower - 1, source), weights[0] = lower;
  positions[1] = t.lower, weights[1] = 2.0f * lower;
  positions[2] = within(t.lower + 1, source), weights[2] = lower;
  positions[3] = within(last - 1, source), weights[3] = upper;
  positions[4] = last, weights[4] = 2.0f * upper;
  positions[5] = within(last + 1, source), weights[5] = upper;
}

template <typename Sample>
PREPROCESS_INLINE float smooth(const Arguments &a, int x, int y) {
  int columns[6], rows[6];
  float across[6], down[6];
  smooth_taps(x, a.source_w, a.inner_w, columns, across);
  smooth_taps(y, a.source_h, a.inner_h, rows, down);
  float total = 0.0f;
  for (int v = 0; v < 6; ++v) {
    const unsigned char *pixels = row(a, rows[v]);
    float sum = 0.0f;
    for (int u = 0; u < 6; ++u) sum += Sample::at(pixels + columns[u] * a.step) * across[u];
    total += sum * down[v];
  }
  return total;
}

// Mean over the source px that the output pixel covers. It spans [at * source, (at + 1) * source) in units of
// 1/inner source px, so that all shares are integers and spans begin and end exactly.
template <typename Sample>
PREPROCESS_INLINE float area(const Arguments &a, int x, int y) {
  const int x_begin = x * a.source_w, x_end = x_begin + a.source_w;
  const int y_begin = y * a.source_h, y_end = y_begin + a.source_h;
  float total = 0.0f;
  for (int v = y_begin / a.inner_h; v * a.inner_h < y_end; ++v) {
    const unsigned char *pixels = row(a, v);
    float sum = 0.0f;
    for (int u = x_begin / a.inner_w; u * a.inner_w < x_end; ++u) {
      const int share = smaller((u + 1) * a.inner_w, x_end) - larger(u * a.inner_w, x_begin);
      sum += Sample::at(pixels + u * a.step) * static_cast<float>(share);
    }
    const int share = smaller((v + 1) * a.inner_h, y_end) - larger(v * a.inner_h, y_begin);
    total += sum * static_cast<float>(share);
  }
  return total / (static_cast<float>(a.source_w) * static_cast<float>(a.source_h));
}

template <typename Sample>
PREPROCESS_INLINE float resized(const Arguments &a, int x, int y) {
  if (a.filter == kSmooth) return smooth<Sample>(a, x, y);
  return a.filter == kArea ? area<Sample>(a, x, y) : bilinear<Sample>(a, x, y);
}

// IEEE binary16 of 0 <= value < 65520, rounded to nearest even.
PREPROCESS_INLINE unsigned short half_bits(float value) {
  union {
    float value;
    unsigned int bits;
  } number;
  number.value = value;
  if (number.bits < 0x38800000u) {  // below 2^-14, where halves are multiples of 2^-24, as floats are around 0.5
    number.value = value + 0.5f;
    return static_cast<unsigned short>(number.bits - 0x3f000000u);
  }
  const unsigned int rounded = number.bits + 0xfffu + ((number.bits >> 13) & 1u);
  return static_cast<unsigned short>((rounded - 0x38000000u) >> 13);
}

PREPROCESS_INLINE void store(float value, float *target) { *target = value; }
PREPROCESS_INLINE void store(float value, unsigned short *target) { *target = half_bits(value); }

template <typename Out>
PREPROCESS_INLINE void put(const Arguments &a, int channel, int x, int y, float value) {
  const Size index = (static_cast<Size>(channel) * a.net_h + y) * a.net_w + x;
  store(value, static_cast<Out *>(a.target) + index);
}

PREPROCESS_INLINE float scaled(const Arguments &a, float value) {
  const float linear = value * a.scale + a.bias;
  return linear < 0.0f ? 0.0f : linear > a.top ? a.top : linear;
}

// Writes network pixel (x, y) of every channel; nothing outside the network's input.
template <typename Out>
PREPROCESS_INLINE void pixel(const Arguments &a, int x, int y) {
  if (x >= a.net_w || y >= a.net_h) return;
  const int u = x - a.pad_x, v = y - a.pad_y;
  if (u < 0 || v < 0 || u >= a.inner_w || v >= a.inner_h) {
    for (int channel = 0; channel < a.channels; ++channel) put<Out>(a, channel, x, y, 0.0f);
  } else if (a.samples == kRgb8) {
    const float red = resized<Rgb8<0>>(a, u, v), green = resized<Rgb8<1>>(a, u, v), blue = resized<Rgb8<2>>(a, u, v);
    if (a.channels == 1) {  // ITU-R BT.601
      put<Out>(a, 0, x, y, scaled(a, 0.299f * red + 0.587f * green + 0.114f * blue));
    } else {
      put<Out>(a, 0, x, y, scaled(a, red));
      put<Out>(a, 1, x, y, scaled(a, green));
      put<Out>(a, 2, x, y, scaled(a, blue));
    }
  } else {
    const float value = scaled(a, a.samples == kGray16 ? resized<Gray16>(a, u, v) : resized<Gray8>(a, u, v));
    for (int channel = 0; channel < a.channels; ++channel) put<Out>(a, channel, x, y, value);
  }
}

}  // namespace preprocess
