# TERSOR_CUDA=ON, an option of CMake or a variable of the environment (which wins), adds the CUDA kernels of
# csrc/kernels/cuda as libtersor_cuda. Without nvcc the package stays CPU-only, with a warning.
# TERSOR_CUDA_ARCHITECTURES, likewise, names the targets in CMake's form.
option(TERSOR_CUDA "Build the CUDA kernels; needs nvcc" OFF)
set(TERSOR_CUDA_ARCHITECTURES "80-real;90-real;90-virtual" CACHE STRING "Targets of the CUDA kernels")
foreach(name TERSOR_CUDA TERSOR_CUDA_ARCHITECTURES)
  if(DEFINED ENV{${name}})
    set(${name} "$ENV{${name}}" CACHE STRING "From the environment" FORCE)
  endif()
endforeach()

if(TERSOR_CUDA)
  set(CMAKE_CUDA_ARCHITECTURES ${TERSOR_CUDA_ARCHITECTURES})  # before the language is enabled
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(CMAKE_CUDA_STANDARD 17)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    set(CMAKE_CUDA_EXTENSIONS OFF)
    set(CMAKE_CUDA_RUNTIME_LIBRARY Static)  # no libcuda: the module imports on a host without a driver
    set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
    enable_language(CUDA)
  else()
    message(WARNING "TERSOR_CUDA=ON, but no nvcc was found: building the CPU-only package. "
                    "Put nvcc on PATH or set CMAKE_CUDA_COMPILER.")
    set(TERSOR_CUDA OFF)
  endif()
endif()

# A shared library with every kernel and launcher of csrc/kernels/cuda. Floats round as on the CPU: no contraction,
# no flush to zero. A register spill is an error.
function(tersor_add_cuda_library)
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/csrc/kernels/cuda/*.cu
       ${PROJECT_SOURCE_DIR}/csrc/cuda/*.cc)
  add_library(libtersor_cuda SHARED ${sources})
  set_target_properties(libtersor_cuda PROPERTIES OUTPUT_NAME tersor_cuda)
  target_include_directories(libtersor_cuda PUBLIC ${PROJECT_SOURCE_DIR}/csrc/include PRIVATE ${PROJECT_SOURCE_DIR}/csrc)
  target_include_directories(libtersor_cuda SYSTEM PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
  target_compile_options(libtersor_cuda PRIVATE
    $<$<COMPILE_LANGUAGE:CUDA>:-fmad=false -Werror all-warnings -Xptxas=-warn-spills,-Werror>
    "$<$<COMPILE_LANGUAGE:CUDA>:SHELL:-Xcompiler=-Wall,-Wextra,-ffp-contract=off>")
  target_link_options(libtersor_cuda PRIVATE -Wl,-z,defs -Wl,--exclude-libs,ALL)
  target_link_libraries(libtersor_cuda PRIVATE libtersor)
endfunction()
