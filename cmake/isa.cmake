# tersor_add_isa(<name> ARCH <any|x86_64|aarch64> [FOLDER <folder>] [NEEDS <CpuFeature>...] [FLAGS <flag>...])
#
# Compiles csrc/kernels/<folder>/*.cc (folder defaults to name) with FLAGS, and appends
#   TERSOR_ISA_ENTRY(<name>, <needs>)
# to the generated isa_list.inc, which the registry reads. Two names may share one folder: the sources see
# TERSOR_ISA_NAME, which names both their namespace and their kernel set.
set(TERSOR_ISA_LINES "")
set(TERSOR_ISA_OTHER_LINES "")
set(TERSOR_ISA_OBJECTS "")

function(tersor_add_isa name)
  cmake_parse_arguments(PARSE_ARGV 1 ISA "" "ARCH;FOLDER" "NEEDS;FLAGS")
  if(NOT ISA_ARCH STREQUAL "any" AND NOT ISA_ARCH STREQUAL CMAKE_SYSTEM_PROCESSOR)
    set(TERSOR_ISA_OTHER_LINES "${TERSOR_ISA_OTHER_LINES}TERSOR_ISA_ELSEWHERE(${name})\n" PARENT_SCOPE)
    return()
  endif()
  if(NOT ISA_FOLDER)
    set(ISA_FOLDER ${name})
  endif()
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/csrc/kernels/${ISA_FOLDER}/*.cc)
  add_library(kernels_${name} OBJECT ${sources})
  target_include_directories(kernels_${name} PRIVATE csrc csrc/include)
  target_compile_definitions(kernels_${name} PRIVATE TERSOR_ISA_NAME=${name})
  target_compile_options(kernels_${name} PRIVATE ${TERSOR_BASE_FLAGS} ${ISA_FLAGS})
  # GCC 12 takes the undefined operands inside its own AVX-512 intrinsics for uninitialised variables of ours.
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    target_compile_options(kernels_${name} PRIVATE -Wno-uninitialized -Wno-maybe-uninitialized)
  endif()
  set(needs "")
  foreach(need IN LISTS ISA_NEEDS)
    string(APPEND needs " | CpuFeature::${need}")
  endforeach()
  set(TERSOR_ISA_LINES "${TERSOR_ISA_LINES}TERSOR_ISA_ENTRY(${name}, CpuFeature::kNone${needs})\n" PARENT_SCOPE)
  set(TERSOR_ISA_OBJECTS ${TERSOR_ISA_OBJECTS} $<TARGET_OBJECTS:kernels_${name}> PARENT_SCOPE)
endfunction()

function(tersor_write_isa_list)
  file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/gen/isa_list.inc
       CONTENT "${TERSOR_ISA_LINES}${TERSOR_ISA_OTHER_LINES}" @ONLY)
endfunction()
