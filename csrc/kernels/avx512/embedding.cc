#include "kernels/embedding_rows.h"

namespace tersor::avx512 {

const EmbeddingKernel& Embedding() {
  static constexpr EmbeddingKernel kernel = {"embedding_avx512", Copy, Add, Max};
  return kernel;
}

}  // namespace tersor::avx512
