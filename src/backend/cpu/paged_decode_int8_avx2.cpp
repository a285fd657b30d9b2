#include "backend/cpu/paged_decode_int8.inl"
