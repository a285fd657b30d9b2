#include "backend/cpu/attention_kernels.inl"
