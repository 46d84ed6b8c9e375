# TERSOR_SANITIZE=address,undefined or thread: instruments every target, stops at the first finding.
if(TERSOR_SANITIZE)
  add_compile_options(-fsanitize=${TERSOR_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all -g)
  add_link_options(-fsanitize=${TERSOR_SANITIZE})
endif()
