#include "backend/cpu/gemm_rows.inl"
