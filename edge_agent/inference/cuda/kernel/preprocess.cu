// The GPU's entry points: one thread per network pixel.
#include "preprocess.cuh"

extern "C" __global__ void preprocess_float(const preprocess::Arguments arguments) {
  preprocess::pixel<float>(arguments, blockIdx.x * blockDim.x + threadIdx.x, blockIdx.y * blockDim.y + threadIdx.y);
}

extern "C" __global__ void preprocess_half(const preprocess::Arguments arguments) {
  preprocess::pixel<unsigned short>(arguments, blockIdx.x * blockDim.x + threadIdx.x,
                                    blockIdx.y * blockDim.y + threadIdx.y);
}
