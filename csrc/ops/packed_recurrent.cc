#include "ops/packed_recurrent.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "core/scratch.h"

namespace tersor {
namespace {

constexpr char kMagic[8] = {'T', 'S', 'R', 'R', 'N', 'v', '1', '\0'};
constexpr int64_t kMaxExtent = int64_t{1} << 28;

[[noreturn]] void Fail(const std::string& what) { throw Error("packed recurrent weight: " + what); }

bool IsValid(const RecurrentSpec& spec) {
  const int32_t cell = static_cast<int32_t>(spec.cell);
  return cell >= 0 && cell <= static_cast<int32_t>(Cell::kLstm) && spec.input > 0 && spec.hidden > 0 &&
         spec.input < kMaxExtent && spec.hidden < kMaxExtent;
}

size_t BiasBytes(const RecurrentSpec& spec) {
  return Scratch::Padded<float>(static_cast<size_t>(2 * GatesOf(spec.cell) * spec.hidden));
}

size_t Aligned(size_t bytes) { return Scratch::Padded<char>(bytes); }

PackedViewRecurrent ViewOf(const RecurrentSpec& spec, char* base, size_t input_bytes, size_t hidden_bytes) {
  PackedViewRecurrent view{spec, GatesOf(spec.cell) * spec.hidden, nullptr, nullptr, nullptr, nullptr, 0, 0, 0};
  view.input_bias = reinterpret_cast<float*>(base + sizeof(PackedHeaderRecurrent));
  view.hidden_bias = view.input_bias + view.width;
  view.input = base + sizeof(PackedHeaderRecurrent) + BiasBytes(spec);
  view.hidden = view.input + Aligned(input_bytes);
  view.input_bytes = input_bytes;
  view.hidden_bytes = hidden_bytes;
  view.bytes = static_cast<size_t>(view.hidden - base) + Aligned(hidden_bytes);
  return view;
}

}  // namespace

PackedViewRecurrent ViewPackedRecurrent(const void* packed, size_t packed_bytes) {
  if (packed == nullptr || packed_bytes < sizeof(PackedHeaderRecurrent))
    Fail(std::to_string(packed_bytes) + " bytes are too few for its header");
  if (reinterpret_cast<uintptr_t>(packed) % alignof(PackedHeaderRecurrent) != 0) Fail("its address is not aligned");
  const PackedHeaderRecurrent& header = *static_cast<const PackedHeaderRecurrent*>(packed);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0)
    Fail("these bytes are not one (or of another version of tersor); pack the weights again");
  const RecurrentSpec spec{static_cast<Cell>(header.cell), header.input, header.hidden, header.bias != 0};
  const bool sizes = header.input_bytes <= packed_bytes && header.hidden_bytes <= packed_bytes;
  if (header.cell > 1 || !IsValid(spec) || header.bias > 1 || !sizes || header.bytes > packed_bytes ||
      header.bytes != ViewOf(spec, nullptr, header.input_bytes, header.hidden_bytes).bytes)
    Fail("header says " + std::to_string(header.bytes) + " bytes, input=" + std::to_string(header.input) +
         ", hidden=" + std::to_string(header.hidden) + ", got " + std::to_string(packed_bytes) + " bytes");
  char* base = const_cast<char*>(static_cast<const char*>(packed));
  const PackedViewRecurrent view = ViewOf(spec, base, header.input_bytes, header.hidden_bytes);
  const PackedShapeS8 input = ShapeOfPackedS8(view.input, view.input_bytes);
  const PackedShapeS8 hidden = ShapeOfPackedS8(view.hidden, view.hidden_bytes);
  if (input.n != view.width || input.k != spec.input || hidden.n != view.width || hidden.k != spec.hidden)
    Fail("its products have other shapes than the header says");
  return view;
}

size_t PackedBytesRecurrent(const RecurrentSpec& spec) {
  if (!IsValid(spec))
    Fail("input and hidden must be in [1, 2^28), got " + std::to_string(spec.input) + " and " +
         std::to_string(spec.hidden));
  const int64_t width = GatesOf(spec.cell) * spec.hidden;
  return ViewOf(spec, nullptr, PackedBytesS8(width, spec.input), PackedBytesS8(width, spec.hidden)).bytes;
}

void PackRecurrent(const RecurrentSpec& spec, const RecurrentWeight& weight, void* packed, size_t packed_bytes) {
  const size_t needed = PackedBytesRecurrent(spec);
  if (packed_bytes != needed) Fail(std::to_string(needed) + " bytes needed, got " + std::to_string(packed_bytes));
  std::memset(packed, 0, packed_bytes);
  const int64_t width = GatesOf(spec.cell) * spec.hidden;
  const size_t input_bytes = PackedBytesS8(width, spec.input), hidden_bytes = PackedBytesS8(width, spec.hidden);
  PackedHeaderRecurrent& header = *static_cast<PackedHeaderRecurrent*>(packed);
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.bytes = needed;
  header.cell = static_cast<uint64_t>(spec.cell);
  header.input = spec.input;
  header.hidden = spec.hidden;
  header.bias = spec.bias;
  header.input_bytes = input_bytes;
  header.hidden_bytes = hidden_bytes;
  const PackedViewRecurrent view = ViewOf(spec, static_cast<char*>(packed), input_bytes, hidden_bytes);
  if (spec.bias) {
    std::copy_n(weight.input_bias, width, view.input_bias);
    std::copy_n(weight.hidden_bias, width, view.hidden_bias);
  }
  PackBeginS8(width, spec.input, view.input, input_bytes);
  PackRowsS8(0, width, weight.input, weight.input_scale, view.input, input_bytes);
  PackBeginS8(width, spec.hidden, view.hidden, hidden_bytes);
  PackRowsS8(0, width, weight.hidden, weight.hidden_scale, view.hidden, hidden_bytes);
}

PackedInfoRecurrent InspectPackedRecurrent(const void* packed, size_t packed_bytes) {
  const PackedViewRecurrent view = ViewPackedRecurrent(packed, packed_bytes);
  return {view.spec, view.bytes, InspectPackedS8(view.hidden, view.hidden_bytes).kernel};
}

void UnpackRecurrent(const void* packed, size_t packed_bytes, const UnpackedRecurrent& to) {
  const PackedViewRecurrent view = ViewPackedRecurrent(packed, packed_bytes);
  UnpackRowsS8(0, view.width, view.input, view.input_bytes, to.input, to.input_scale);
  UnpackRowsS8(0, view.width, view.hidden, view.hidden_bytes, to.hidden, to.hidden_scale);
  if (!view.spec.bias) return;
  std::copy_n(view.input_bias, view.width, to.input_bias);
  std::copy_n(view.hidden_bias, view.width, to.hidden_bias);
}

}  // namespace tersor
