#include "backend/cpu/tile_gemm.inl"
