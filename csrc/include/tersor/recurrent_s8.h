// GRU and LSTM layers of one direction with int8 weights. docs/recurrent.md has the numeric contract.
#pragma once
#include <string>

#include "tersor/linear_s8.h"

namespace tersor {

// Codes are part of the packed block: append, never renumber.
enum class Cell : int32_t { kGru = 0, kLstm = 1 };
constexpr int64_t GatesOf(Cell cell) { return cell == Cell::kGru ? 3 : 4; }

struct RecurrentSpec {
  Cell cell;
  int64_t input, hidden;
  bool bias;
};

// Rows of the weights are gate after gate as torch has them; scales and biases as in PackRowsS8.
struct RecurrentWeight {
  const int8_t *input, *hidden;             // [gates * hidden][input], [gates * hidden][hidden]
  const float *input_scale, *hidden_scale;  // [gates * hidden]
  const float *input_bias, *hidden_bias;    // the same, or null where the spec has no bias
};

TERSOR_API size_t PackedBytesRecurrent(const RecurrentSpec& spec);
TERSOR_API void PackRecurrent(const RecurrentSpec& spec, const RecurrentWeight& weight, void* packed,
                              size_t packed_bytes);
struct PackedInfoRecurrent {
  RecurrentSpec spec;
  size_t bytes;        // of the block; more may follow
  std::string kernel;  // of its products
};
// The block at the start of these bytes. Throws Error when there is none.
TERSOR_API PackedInfoRecurrent InspectPackedRecurrent(const void* packed, size_t packed_bytes);
struct UnpackedRecurrent {
  int8_t *input, *hidden;
  float *input_scale, *hidden_scale, *input_bias, *hidden_bias;
};
TERSOR_API void UnpackRecurrent(const void* packed, size_t packed_bytes, const UnpackedRecurrent& to);

struct RecurrentArgs {
  const void* packed;
  size_t packed_bytes;
  // Rows of the steps, one step after the other; of step t the first batch_sizes[t] sequences have one. Sizes do not
  // grow, and the first is `batch`.
  int64_t steps, batch;
  const int64_t* batch_sizes;  // [steps]
  const float* x;              // [rows][input], row stride ldx
  int64_t rows, ldx;
  bool reverse;         // from the last step to the first
  float* y;             // [rows][hidden]
  float *state, *cell;  // [batch][hidden], contiguous: what the sequences begin with, then what they end with
};
// gates of x = linear_s8(x), all steps at once; then step by step those of the state, linear_s8(state), and the cell.
TERSOR_API void RecurrentS8(const RecurrentArgs& args, const Executor& executor);

}  // namespace tersor
