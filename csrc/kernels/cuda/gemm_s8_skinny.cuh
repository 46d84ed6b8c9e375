// The int8 form of the kernel for few rows, which GemmS8 calls: m <= kSkinnyRows, arguments checked.
#pragma once
#include "tersor/cuda.h"

namespace tersor::cuda {

int64_t GemmS8FewRowsWorkspaceBytes(int64_t n, int64_t k);
int GemmS8FewRows(const GemmS8Args& args, void* stream);

}  // namespace tersor::cuda
