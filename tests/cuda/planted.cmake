# tersor_planted(<name> IN <kernel file> [KERNEL <kernel file>] REPLACE <text> BY <text> TEST <test file> [RUN <test name>]
#                [SANITIZER <variant>] EXPECT <regular expression>)
#
# Negative control: builds a kernel with one piece of text exchanged and demands that the test reports it. The text has to
# occur exactly once, so that a kernel cannot change without its controls. When IN is a header, KERNEL includes it.
function(tersor_planted name)
  cmake_parse_arguments(PARSE_ARGV 1 PLANT "" "IN;KERNEL;REPLACE;BY;TEST;RUN;SANITIZER;EXPECT" "")
  set(kernels ${PROJECT_SOURCE_DIR}/csrc/kernels/cuda)
  set(planted ${CMAKE_CURRENT_BINARY_DIR}/planted/${name}/kernels/cuda/${PLANT_IN})
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${kernels}/${PLANT_IN})
  file(READ ${kernels}/${PLANT_IN} text)
  string(FIND "${text}" "${PLANT_REPLACE}" first)
  string(FIND "${text}" "${PLANT_REPLACE}" last REVERSE)
  if(first EQUAL -1 OR NOT first EQUAL last)
    message(FATAL_ERROR "planted ${name}: '${PLANT_REPLACE}' must occur exactly once in ${PLANT_IN}")
  endif()
  string(REPLACE "${PLANT_REPLACE}" "${PLANT_BY}" text "${text}")
  file(GENERATE OUTPUT ${planted} CONTENT "${text}")
  set(variant plain)
  if(PLANT_SANITIZER)
    set(variant ${PLANT_SANITIZER})
  endif()
  set(source ${planted})
  if(PLANT_KERNEL)  # a file of its own, so that nothing beside it is found before the planted header
    set(source ${CMAKE_CURRENT_BINARY_DIR}/planted/${name}/${PLANT_KERNEL})
    configure_file(${kernels}/${PLANT_KERNEL} ${source} COPYONLY)
  endif()
  set_source_files_properties(${source} PROPERTIES LANGUAGE CXX)
  add_executable(planted_${name} ${source} ${PLANT_TEST})
  target_include_directories(planted_${name} BEFORE PRIVATE ${CMAKE_CURRENT_BINARY_DIR}/planted/${name})
  target_compile_options(planted_${name} PRIVATE -Wno-unused)  # what the replaced text used
  target_link_libraries(planted_${name} PRIVATE cuda_emulated_${variant})
  add_test(NAME cuda_planted_${name} COMMAND planted_${name} ${PLANT_RUN})
  set_tests_properties(cuda_planted_${name} PROPERTIES LABELS cuda PASS_REGULAR_EXPRESSION "${PLANT_EXPECT}"
                       ENVIRONMENT "TERSOR_TEST_QUICK=1;TSAN_OPTIONS=halt_on_error=1")
endfunction()
