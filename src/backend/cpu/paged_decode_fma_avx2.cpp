#include "backend/cpu/paged_decode_fma.inl"
