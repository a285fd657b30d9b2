#include "comm/tree_sum.inl"
