#include "kernels/embedding_rows.h"

namespace tersor::avx2 {

const EmbeddingKernel& Embedding() {
  static constexpr EmbeddingKernel kernel = {"embedding_avx2", Copy, Add, Max};
  return kernel;
}

}  // namespace tersor::avx2
