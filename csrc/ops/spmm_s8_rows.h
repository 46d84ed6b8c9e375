// spmm_s8 for few rows of x, from the section of packed_spmm_s8_rows.h.
#pragma once
#include "core/registry.h"
#include "ops/packed_spmm_s8.h"
#include "ops/packed_spmm_s8_rows.h"
#include "tersor/linear_s8.h"

namespace tersor {

// args.m is at most rows.kernel->max_m; args are checked, and m > 0.
void RunSpmmS8Rows(const LinearS8Args& args, const PackedViewSpmmS8& weight, const PackedViewSpmmS8Rows& rows,
                   const Selection& kernels, const Executor& executor);

}  // namespace tersor
