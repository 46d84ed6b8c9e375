# Mistakes in the sparse and low-rank kernels, each of which a test has to find.
tersor_planted(token_bound IN fragment_gemm.cuh KERNEL sparse24.cu SANITIZER asan
               REPLACE "weight.TokenAt(min(token + 8 * t, args.m - 1))" BY "weight.TokenAt(token + 8 * t)"
               TEST test_sparse24.cc RUN Sparse24S8Sums EXPECT "heap-buffer-overflow")
tersor_planted(sums_barrier IN fragment_gemm.cuh KERNEL block_s8.cu SANITIZER tsan
               REPLACE "__syncthreads()" BY "__syncwarp()" TEST test_sparse_s8.cc RUN BlockRaceFree EXPECT "data race")
tersor_planted(stream_syncwarp IN bitmap_s8.cu SANITIZER tsan
               REPLACE "__syncwarp();  // all lanes are done" BY "// all lanes are done"
               TEST test_sparse_s8.cc RUN BitmapRaceFree EXPECT "data race")
tersor_planted(divergent_shuffle IN bitmap_s8.cu
               REPLACE "__byte_perm(window, 0u, __shfl_sync(kAllLanes, selector_, static_cast<int>(bits)))"
               BY "bits == 0 ? 0u : __byte_perm(window, 0u, __shfl_sync(kAllLanes, selector_, static_cast<int>(bits)))"
               TEST test_sparse_s8.cc RUN BitmapSums EXPECT "emulation: (divergent warp|deadlock)")
tersor_planted(metadata_pair IN sparse24.cu REPLACE "step % 2 != 0" BY "step % 2 == 0"
               TEST test_sparse24.cc RUN Sparse24F16 EXPECT "FAIL Sparse24F16|ordered metadata")
tersor_planted(down_barrier IN lowrank.cu SANITIZER tsan
               REPLACE "StoreSums(acc, lane, stage + warp * Tile::kStage);\n    __syncthreads()"
               BY "StoreSums(acc, lane, stage + warp * Tile::kStage)"
               TEST test_lowrank.cc RUN RaceFree EXPECT "data race")
tersor_planted(zero_tail IN lowrank.cu REPLACE "if (first + i < args.k) x.w" BY "x.w" SANITIZER asan
               TEST test_lowrank.cc RUN LowRankF16 EXPECT "heap-buffer-overflow|FAIL LowRankF16")
