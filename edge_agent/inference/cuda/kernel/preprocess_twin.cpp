// The counterpart of preprocess.cu on the CPU, for tests: the same names, run for every thread of the grid.
#include "preprocess.cuh"

namespace {

template <typename Out>
void launch(const preprocess::Arguments &arguments, const unsigned *grid, const unsigned *block) {
  for (unsigned y = 0; y < grid[1] * block[1]; ++y)
    for (unsigned x = 0; x < grid[0] * block[0]; ++x)
      preprocess::pixel<Out>(arguments, static_cast<int>(x), static_cast<int>(y));
}

}  // namespace

extern "C" void preprocess_float(const preprocess::Arguments *arguments, const unsigned *grid, const unsigned *block) {
  launch<float>(*arguments, grid, block);
}

extern "C" void preprocess_half(const preprocess::Arguments *arguments, const unsigned *grid, const unsigned *block) {
  launch<unsigned short>(*arguments, grid, block);
}

extern "C" unsigned short preprocess_half_bits(float value) { return preprocess::half_bits(value); }
