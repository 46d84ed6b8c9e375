#include "ops/packed_lut4.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "core/huge_pages.h"
#include "core/scratch.h"

namespace tersor {
namespace {

constexpr char kMagic[8] = {'T', 'S', 'R', 'L', '4', 'v', '2', '\0'};
constexpr int64_t kMaxExtent = int64_t{1} << 31;
constexpr int64_t kRows = kPanelRowsLut4, kTableBytes = kRows * 16, kPlaneBytes = kRows * kStepLut4 / 8;
constexpr int32_t kPairDepth = 256;  // up to here column sums fit 16 bits
static_assert(kPairDepth * 127 <= 32767, "so they do");

[[noreturn]] void Fail(const std::string& what) { throw Error("packed code book weight: " + what); }

bool IsValid(const Lut4Spec& s) {
  const bool extents = s.n > 0 && s.k > 0 && s.n < kMaxExtent && s.k < kMaxExtent && s.bits >= 2 && s.bits <= 8;
  const bool grouped = s.group == 0 || (s.group >= kStepLut4 && s.group <= kMaxDepthS8 && s.group % kStepLut4 == 0);
  if (!extents || !grouped || s.k > (int64_t{1} << 48) / s.n) return false;  // no size below overflows
  return s.table_groups == 1 ? s.table_rows == 1 || s.table_rows == s.n
                             : s.table_rows == s.n && s.table_groups == s.groups();
}

std::string Text(const Lut4Spec& s) {
  return "n=" + std::to_string(s.n) + ", k=" + std::to_string(s.k) + ", group=" + std::to_string(s.group) +
         ", bits=" + std::to_string(s.bits) + ", tables of " + std::to_string(s.table_rows) + " rows and " +
         std::to_string(s.table_groups) + " groups";
}

void CheckSpec(const Lut4Spec& spec) {
  if (!IsValid(spec))
    Fail(Text(spec) +
         "; n and k lie in [1, 2^31), a group is 0 or a multiple of 32 up to 65536, bits are 2 to 8, and there is one "
         "table, one for each row, or one for each row and group");
}

size_t Entries(const Lut4Spec& spec) { return size_t{1} << spec.bits; }
size_t TableBytes(const Lut4Spec& spec) {
  return static_cast<size_t>(spec.table_rows * spec.table_groups) * Entries(spec);
}

void CheckWeight(const Lut4Spec& spec, const Lut4Weight& weight) {
  const uint8_t* codes_end = weight.codes + spec.n * spec.k;
  const uint32_t entries = static_cast<uint32_t>(Entries(spec));
  const uint8_t* bad = std::find_if(weight.codes, codes_end, [entries](uint8_t code) { return code >= entries; });
  if (bad != codes_end) Fail("code " + std::to_string(*bad) + " does not fit " + std::to_string(spec.bits) + " bits");
  const int8_t* table_end = weight.table + TableBytes(spec);
  if (std::find(weight.table, table_end, int8_t{-128}) != table_end)
    Fail("the table holds -128; its entries lie in [-127, 127]");
  const auto check_scales = [](const float* scale, int64_t count, const char* name) {
    for (int64_t i = 0; i < count; ++i)
      if (!(scale[i] > 0.0f) || !std::isfinite(scale[i]))
        Fail(std::string(name) + " " + std::to_string(i) + " is " + std::to_string(scale[i]) +
             "; scales are finite and greater than 0");
  };
  check_scales(weight.scale, spec.n * spec.groups(), "scale");
  if (weight.input_scale != nullptr) check_scales(weight.input_scale, spec.k, "input scale");
}

int64_t PlaceOfRow(int64_t row) { return 4 * (row % 4) + row / 4; }

struct Packer {
  const PackedViewLut4& view;
  const Lut4Spec& spec = view.spec;
  const PackedLayoutLut4& layout = view.layout;
  const size_t entries = Entries(spec);

  const int8_t* Table(int64_t row, int64_t part) const {
    const int64_t at = (spec.table_rows == 1 ? 0 : row * spec.table_groups) + (spec.table_groups == 1 ? 0 : part);
    return view.table + static_cast<size_t>(at) * entries;
  }
  bool wide() const { return layout.tables == Lut4Tables::kWide; }
  int64_t Depth(int64_t part) const { return std::min<int64_t>(layout.depth, spec.k - part * layout.depth); }
  // Value k of a part of a row in a wide weight.
  uint8_t* Byte(int64_t row, int64_t part, int64_t k) const {
    return view.Codes(row / kRows, part) + (k / 16 * kRows + PlaceOfRow(row % kRows)) * 16 + k % 16;
  }

  // Where the bits of the code of value k lie: four in one byte, then one in each plane.
  struct Bits {
    uint8_t *low, *plane;
    int shift, plane_shift;
  };
  Bits BitsOf(int64_t row, int64_t part, int64_t k) const {
    const int64_t place = PlaceOfRow(row % kRows), lane = k % 16, half = k % kStepLut4 / 16;
    uint8_t* step = view.Codes(row / kRows, part) + k / kStepLut4 * static_cast<int64_t>(layout.step_bytes);
    return {step + place * 16 + lane, step + kTableBytes + half * (kPlaneBytes / 2) + place * 2 + lane / 8,
            static_cast<int>(4 * half), static_cast<int>(lane % 8)};
  }

  void PutCode(int64_t row, int64_t part, int64_t k, uint8_t code) const {
    const Bits at = BitsOf(row, part, k);
    *at.low = static_cast<uint8_t>(*at.low | (code & 15) << at.shift);
    for (int32_t h = 0; h < layout.high; ++h) {
      uint8_t& byte = at.plane[h * kPlaneBytes];
      byte = static_cast<uint8_t>(byte | (code >> (4 + h) & 1) << at.plane_shift);
    }
  }

  uint8_t Code(int64_t row, int64_t part, int64_t k) const {
    const Bits at = BitsOf(row, part, k);
    int code = *at.low >> at.shift & 15;
    for (int32_t h = 0; h < layout.high; ++h) code |= (at.plane[h * kPlaneBytes] >> at.plane_shift & 1) << (4 + h);
    return static_cast<uint8_t>(code);
  }

  void PackRow(int64_t row, const uint8_t* codes, const float* scale) const {
    const int64_t panel = row / kRows, lane = row % kRows;
    for (int64_t p = 0; p < layout.parts; ++p) {
      const int8_t* table = Table(row, p);
      for (size_t book = 0; !wide() && book * 16 < entries; ++book)
        std::copy_n(table + book * 16, std::min<size_t>(entries, 16),
                    view.Tables(panel, p) + static_cast<int64_t>(book) * kTableBytes + PlaceOfRow(lane) * 16);
      int32_t sum = 0;
      for (int64_t k = 0; k < Depth(p); ++k) {
        const uint8_t code = codes[p * layout.depth + k];
        sum += table[code];
        if (wide())
          *Byte(row, p, k) = static_cast<uint8_t>(table[code]);
        else
          PutCode(row, p, k, code);
      }
      view.SetColSum(panel, p, lane, sum);
      view.Scale(panel, p)[lane] = scale[spec.group == 0 ? 0 : p];
    }
  }

  void UnpackRow(int64_t row, uint8_t* codes) const {
    for (int64_t p = 0; p < layout.parts; ++p) {
      const int8_t* table = Table(row, p);
      uint8_t code_of[256] = {};
      for (size_t code = entries; code-- > 0;) code_of[static_cast<uint8_t>(table[code])] = static_cast<uint8_t>(code);
      for (int64_t k = 0; k < Depth(p); ++k)
        codes[p * layout.depth + k] = wide() ? code_of[*Byte(row, p, k)] : Code(row, p, k);
    }
  }
};

}  // namespace

PackedLayoutLut4 LayoutLut4(const Lut4Spec& spec) {
  PackedLayoutLut4 layout;
  // More than 16 entries for each group are as large as the values that they save.
  const bool own = spec.table_groups > 1, wide = spec.bits > 4 + kMaxHighLut4 || (own && spec.bits > 4);
  layout.tables = wide ? Lut4Tables::kWide : own ? Lut4Tables::kPerPart : Lut4Tables::kPerPanel;
  layout.high = wide ? 0 : std::max(spec.bits - 4, 0);
  layout.depth = static_cast<int32_t>(spec.group == 0 ? kMaxDepthS8 : spec.group);
  layout.parts = (spec.k + layout.depth - 1) / layout.depth;
  layout.in_unit = layout.depth <= kPairDepth ? 2 : 1;
  layout.panels = (spec.n + kRows - 1) / kRows;
  layout.input_scale_at = sizeof(PackedHeaderLut4);
  layout.table_at = layout.input_scale_at + Scratch::Padded<float>(static_cast<size_t>(spec.k));
  layout.panels_at = layout.table_at + Scratch::Padded<int8_t>(TableBytes(spec));
  const size_t in_unit = static_cast<size_t>(layout.in_unit), parts = static_cast<size_t>(layout.parts);
  const size_t tables = static_cast<size_t>(kTableBytes) << layout.high, units = (parts + in_unit - 1) / in_unit;
  const size_t steps = static_cast<size_t>((spec.k + kStepLut4 - 1) / kStepLut4);
  layout.step_bytes = static_cast<size_t>(wide ? 2 * kTableBytes : kTableBytes + layout.high * kPlaneBytes);
  layout.unit_at = layout.tables == Lut4Tables::kPerPanel ? tables : 0;
  layout.scale_at = layout.tables == Lut4Tables::kPerPart ? in_unit * tables : 0;
  layout.col_sum_at = layout.scale_at + in_unit * 64;
  layout.codes_at = layout.col_sum_at + 64;
  layout.unit_bytes = layout.codes_at + in_unit * static_cast<size_t>(layout.depth / kStepLut4) * layout.step_bytes;
  layout.panel_bytes = layout.unit_at + units * layout.codes_at + steps * layout.step_bytes;
  layout.total = layout.panels_at + static_cast<size_t>(layout.panels) * layout.panel_bytes;
  return layout;
}

int32_t PackedViewLut4::ColSum(int64_t panel, int64_t part, int64_t row) const {
  const uint8_t* sums = Unit(panel, part) + layout.col_sum_at;
  return layout.in_unit == 2 ? reinterpret_cast<const int16_t*>(sums)[part % 2 * kRows + row]
                             : reinterpret_cast<const int32_t*>(sums)[row];
}

void PackedViewLut4::SetColSum(int64_t panel, int64_t part, int64_t row, int32_t sum) const {
  uint8_t* sums = Unit(panel, part) + layout.col_sum_at;
  if (layout.in_unit == 2)
    reinterpret_cast<int16_t*>(sums)[part % 2 * kRows + row] = static_cast<int16_t>(sum);
  else
    reinterpret_cast<int32_t*>(sums)[row] = sum;
}

Lut4Panel PackedViewLut4::Args(int64_t panel) const {
  return {static_cast<int32_t>(spec.k),
          layout.depth,
          static_cast<int32_t>(layout.parts),
          layout.in_unit,
          layout.high,
          static_cast<int32_t>(layout.step_bytes),
          layout.tables,
          static_cast<int64_t>(layout.unit_bytes),
          Panel(panel)};
}

PackedViewLut4 ViewPackedLut4(const void* packed, size_t packed_bytes) {
  if (packed == nullptr || packed_bytes < sizeof(PackedHeaderLut4))
    Fail(std::to_string(packed_bytes) + " bytes are too few for its header");
  if (reinterpret_cast<uintptr_t>(packed) % alignof(PackedHeaderLut4) != 0)
    Fail("its address is not a multiple of " + std::to_string(alignof(PackedHeaderLut4)));
  const PackedHeaderLut4& header = *static_cast<const PackedHeaderLut4*>(packed);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0)
    Fail("these bytes are not one (or of another version of tersor); pack the weight again");
  if (!IsValid(header.spec) || header.smoothed > 1 || header.bytes != packed_bytes)
    Fail("header says " + std::to_string(header.bytes) + " bytes, " + Text(header.spec) +
         ", smoothed=" + std::to_string(header.smoothed) + ", got " + std::to_string(packed_bytes) + " bytes");
  PackedViewLut4 view{header.spec, LayoutLut4(header.spec), nullptr, nullptr, nullptr};
  if (view.layout.total != packed_bytes)
    Fail(std::to_string(view.layout.total) + " bytes needed, got " + std::to_string(packed_bytes));
  char* base = const_cast<char*>(static_cast<const char*>(packed));
  if (header.smoothed != 0) view.input_scale = reinterpret_cast<float*>(base + view.layout.input_scale_at);
  view.table = reinterpret_cast<int8_t*>(base + view.layout.table_at);
  view.panels = reinterpret_cast<uint8_t*>(base + view.layout.panels_at);
  return view;
}

size_t PackedBytesLut4(const Lut4Spec& spec) {
  CheckSpec(spec);
  return LayoutLut4(spec).total;
}

void PackLut4(const Lut4Spec& spec, const Lut4Weight& weight, void* packed, size_t packed_bytes) {
  const size_t needed = PackedBytesLut4(spec);
  if (packed_bytes != needed) Fail(std::to_string(needed) + " bytes needed, got " + std::to_string(packed_bytes));
  CheckWeight(spec, weight);
  AdviseHugePages(packed, packed_bytes);
  std::memset(packed, 0, packed_bytes);
  PackedHeaderLut4& header = *static_cast<PackedHeaderLut4*>(packed);
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.bytes = needed;
  header.spec = spec;
  header.smoothed = weight.input_scale != nullptr;
  const PackedViewLut4 view = ViewPackedLut4(packed, packed_bytes);
  if (weight.input_scale != nullptr) std::copy_n(weight.input_scale, spec.k, const_cast<float*>(view.input_scale));
  std::copy_n(weight.table, TableBytes(spec), view.table);
  const Packer packer{view};
  for (int64_t row = 0; row < spec.n; ++row)
    packer.PackRow(row, weight.codes + row * spec.k, weight.scale + row * spec.groups());
}

PackedInfoLut4 InspectPackedLut4(const void* packed, size_t packed_bytes) {
  const PackedViewLut4 view = ViewPackedLut4(packed, packed_bytes);
  return {view.spec.n, view.spec.k, view.spec, view.input_scale != nullptr, Selected().lut4->id};
}

void UnpackLut4(const void* packed, size_t packed_bytes, uint8_t* codes, int8_t* table, float* scale,
                float* input_scale) {
  const PackedViewLut4 view = ViewPackedLut4(packed, packed_bytes);
  const Packer packer{view};
  if (table != nullptr) std::copy_n(view.table, TableBytes(view.spec), table);
  if (input_scale != nullptr && view.input_scale != nullptr) std::copy_n(view.input_scale, view.spec.k, input_scale);
  const int64_t groups = view.spec.groups();
  for (int64_t row = 0; row < view.spec.n; ++row) {
    if (codes != nullptr) packer.UnpackRow(row, codes + row * view.spec.k);
    for (int64_t g = 0; scale != nullptr && g < groups; ++g)
      scale[row * groups + g] = view.Scale(row / kRows, g)[row % kRows];
  }
}

}  // namespace tersor
