#include <cstdio>

#include "base/error.h"

int main() {
  std::fprintf(stderr, "orrery: no command given\n");
  return 2;
}
