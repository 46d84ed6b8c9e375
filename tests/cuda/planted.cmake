# tersor_planted(<name> IN <kernel file> REPLACE <text> BY <text> TEST <test file> [RUN <test name>] [SANITIZER <variant>]
#                EXPECT <regular expression>)
#
# Negative control: builds the kernel file with one piece of text exchanged and demands that the test reports it. The
# text has to occur exactly once, so that a kernel cannot change without its controls.
function(tersor_planted name)
  cmake_parse_arguments(PARSE_ARGV 1 PLANT "" "IN;REPLACE;BY;TEST;RUN;SANITIZER;EXPECT" "")
  set(original ${PROJECT_SOURCE_DIR}/csrc/kernels/cuda/${PLANT_IN})
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${original})
  file(READ ${original} text)
  string(FIND "${text}" "${PLANT_REPLACE}" first)
  string(FIND "${text}" "${PLANT_REPLACE}" last REVERSE)
  if(first EQUAL -1 OR NOT first EQUAL last)
    message(FATAL_ERROR "planted ${name}: '${PLANT_REPLACE}' must occur exactly once in ${PLANT_IN}")
  endif()
  string(REPLACE "${PLANT_REPLACE}" "${PLANT_BY}" text "${text}")
  set(planted ${CMAKE_CURRENT_BINARY_DIR}/planted/${name}.cu)
  file(CONFIGURE OUTPUT ${planted} CONTENT "${text}" @ONLY)
  set_source_files_properties(${planted} PROPERTIES LANGUAGE CXX)
  set(variant plain)
  if(PLANT_SANITIZER)
    set(variant ${PLANT_SANITIZER})
  endif()
  add_executable(planted_${name} ${planted} ${PLANT_TEST})
  target_compile_options(planted_${name} PRIVATE -Wno-unused)  # what the replaced text used
  target_link_libraries(planted_${name} PRIVATE cuda_emulated_${variant})
  add_test(NAME cuda_planted_${name} COMMAND planted_${name} ${PLANT_RUN})
  set_tests_properties(cuda_planted_${name} PROPERTIES LABELS cuda PASS_REGULAR_EXPRESSION "${PLANT_EXPECT}")
endfunction()
