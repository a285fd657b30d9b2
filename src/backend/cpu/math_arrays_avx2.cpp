#include "backend/cpu/math_arrays.h"
#include "backend/cpu/math_arrays.inl"
