#include "backend/cpu/row_kernels.inl"
