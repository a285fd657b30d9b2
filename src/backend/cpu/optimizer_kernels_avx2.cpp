#include "backend/cpu/optimizer_kernels.inl"
