# The one list. Order is preference, worst first. A line here plus a folder csrc/kernels/<name>/ is all it
# takes to add an ISA; registry, ops, bindings, tests, benches and Python loop over it.
set(avx512_flags -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512)

tersor_add_isa(scalar       ARCH any)
tersor_add_isa(avx2         ARCH x86_64  NEEDS kAvx2  FLAGS -mavx2 -mfma -mf16c)
tersor_add_isa(avxvnni      ARCH x86_64  NEEDS kAvx2 kAvxVnni  FLAGS -mavx2 -mfma -mf16c -mavxvnni)
# The same source through the EVEX encoding, so that a host with AVX512-VNNI tests the 256-bit kernels too.
tersor_add_isa(avxvnni_evex ARCH x86_64  FOLDER avxvnni  NEEDS kAvx2 kAvx512 kAvx512Vnni
               FLAGS -mavx2 -mfma -mf16c -mavx512f -mavx512vl -mavx512vnni -mprefer-vector-width=256)
tersor_add_isa(avx512       ARCH x86_64  NEEDS kAvx2 kAvx512  FLAGS ${avx512_flags})
tersor_add_isa(avx512vnni   ARCH x86_64  NEEDS kAvx2 kAvx512 kAvx512Vnni  FLAGS ${avx512_flags} -mavx512vnni)
tersor_add_isa(avx512vbmi2  ARCH x86_64  NEEDS kAvx2 kAvx512 kAvx512Vnni kAvx512Vbmi2
               FLAGS ${avx512_flags} -mavx512vnni -mavx512vbmi2 -mpopcnt)
tersor_add_isa(neon_dotprod ARCH aarch64 NEEDS kNeonDotprod  FLAGS -march=armv8.2-a+dotprod)
tersor_add_isa(neon_i8mm    ARCH aarch64 NEEDS kNeonDotprod kNeonI8mm  FLAGS -march=armv8.2-a+dotprod+i8mm)
