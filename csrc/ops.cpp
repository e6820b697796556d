// Declares the operators, and nothing else.
#include <torch/csrc/stable/library.h>

#include "schemas.h"

STABLE_TORCH_LIBRARY(convgru_fused, m) {
  m.def(CONVGRU_FORWARD_SCHEMA);
  m.def(CONVGRU_BACKWARD_SCHEMA);
}
