# Warnings are errors, everywhere. Floats are never contracted behind our back: the rounding rule of
# docs/kernels.md holds on every ISA because each fused multiply-add is written out.
add_compile_options("$<$<COMPILE_LANGUAGE:C,CXX>:-Wall;-Wextra;-Werror;-ffp-contract=off>")

# Code outside csrc/kernels/<isa>/ runs on any x86-64-v2 host.
set(TERSOR_BASE_FLAGS "")
if(CMAKE_SYSTEM_PROCESSOR STREQUAL "x86_64")
  set(TERSOR_BASE_FLAGS -march=x86-64-v2)
endif()
