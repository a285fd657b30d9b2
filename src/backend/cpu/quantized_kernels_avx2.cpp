#include "backend/cpu/quantized_kernels.inl"
