// The packed embedding: header | rows of (scale f32 | values), padded to 4 bytes: one place in memory for each lookup.
#include "tersor/embedding_s8.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "core/registry.h"
#include "kernels/embedding_api.h"
#include "ops/range.h"

namespace tersor {
namespace {

constexpr char kMagic[8] = {'T', 'S', 'R', 'E', 'B', 'v', '1', '\0'};
constexpr int64_t kMaxRows = int64_t{1} << 40, kMaxDim = int64_t{1} << 20;
constexpr int64_t kSerialValues = int64_t{1} << 16;  // fewer take less time than waking a thread

struct Header {
  char magic[8];
  uint64_t bytes;
  int64_t rows, dim, bits;
  char zeros[24];
};
static_assert(sizeof(Header) == 64, "a cache line");

[[noreturn]] void Fail(const std::string& what) { throw Error("packed embedding: " + what); }

int64_t Stride(const EmbeddingSpec& spec) { return 4 + (spec.row_bytes() + 3) / 4 * 4; }

bool IsValid(int64_t rows, int64_t dim, int64_t bits) {
  return rows > 0 && dim > 0 && rows < kMaxRows && dim < kMaxDim && (bits == 8 || bits == 4);
}

struct View {
  EmbeddingSpec spec;
  int64_t stride;
  uint8_t* rows;

  EmbeddingRow Row(int64_t index) const {
    const uint8_t* row = rows + index * stride;
    float scale;
    std::memcpy(&scale, row, sizeof scale);
    return {row + 4, scale, spec.bits == 4};
  }
};

View ViewPacked(const void* packed, size_t packed_bytes) {
  if (packed == nullptr || packed_bytes < sizeof(Header))
    Fail(std::to_string(packed_bytes) + " bytes are too few for its header");
  Header header;
  std::memcpy(&header, packed, sizeof header);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0)
    Fail("these bytes are not one (or of another version of tersor); pack it again");
  const EmbeddingSpec spec{header.rows, header.dim, static_cast<int32_t>(header.bits)};
  if (!IsValid(header.rows, header.dim, header.bits) || header.bytes != packed_bytes ||
      PackedBytesEmbedding(spec) != packed_bytes)
    Fail("header says " + std::to_string(header.bytes) + " bytes, rows=" + std::to_string(header.rows) +
         ", dim=" + std::to_string(header.dim) + ", bits=" + std::to_string(header.bits) + ", got " +
         std::to_string(packed_bytes) + " bytes");
  char* base = const_cast<char*>(static_cast<const char*>(packed));
  return {spec, Stride(spec), reinterpret_cast<uint8_t*>(base) + sizeof(Header)};
}

void CheckIndices(const View& view, int64_t count, const int64_t* indices) {
  for (int64_t i = 0; i < count; ++i)
    if (indices[i] < 0 || indices[i] >= view.spec.rows)
      throw Error("embedding: index " + std::to_string(indices[i]) + " is not a row of " +
                  std::to_string(view.spec.rows));
}

struct Gather {
  const View& view;
  const EmbeddingKernel& kernel;
  int64_t count;
  const int64_t* indices;
  float* y;
  int32_t tasks = 1;
};

void RunGather(void* context, int32_t task) {
  const Gather& job = *static_cast<Gather*>(context);
  const Range share = EvenSplit(job.count, job.tasks)[task];
  const int64_t dim = job.view.spec.dim;
  for (int64_t i = share.begin; i < share.end; ++i) job.kernel.copy(dim, job.view.Row(job.indices[i]), job.y + i * dim);
}

struct Bags {
  const View& view;
  const EmbeddingKernel& kernel;
  const EmbeddingBagArgs& args;
  int32_t tasks = 1;

  void Run(int64_t bag) const {
    const int64_t dim = view.spec.dim;
    float* y = args.y + bag * dim;
    std::fill_n(y, dim, 0.0f);
    int64_t taken = 0;
    for (int64_t i = args.offsets[bag]; i < args.offsets[bag + 1]; ++i) {
      if (args.indices[i] == args.padding) continue;
      const EmbeddingRow row = view.Row(args.indices[i]);
      if (args.mode != BagMode::kMax)
        kernel.add(dim, row, args.weights == nullptr ? 1.0f : args.weights[i], args.weights != nullptr, y);
      else if (taken == 0)
        kernel.copy(dim, row, y);
      else
        kernel.max(dim, row, y);
      ++taken;
    }
    if (args.mode == BagMode::kMean && taken > 0)
      for (int64_t j = 0; j < dim; ++j) y[j] = y[j] / static_cast<float>(taken);
  }
};

void RunBags(void* context, int32_t task) {
  const Bags& job = *static_cast<Bags*>(context);
  const Range share = EvenSplit(job.args.bags, job.tasks)[task];
  for (int64_t bag = share.begin; bag < share.end; ++bag) job.Run(bag);
}

int32_t TasksFor(int64_t count, int64_t dim, int64_t parts, const Executor& executor) {
  return count * dim < kSerialValues ? 1 : static_cast<int32_t>(std::min<int64_t>(executor.threads, parts));
}

}  // namespace

size_t PackedBytesEmbedding(const EmbeddingSpec& spec) {
  if (!IsValid(spec.rows, spec.dim, spec.bits))
    Fail("rows must be in [1, 2^40), dim in [1, 2^20) and bits 8 or 4, got " + std::to_string(spec.rows) + ", " +
         std::to_string(spec.dim) + " and " + std::to_string(spec.bits));
  return sizeof(Header) + static_cast<size_t>(spec.rows) * static_cast<size_t>(Stride(spec));
}

void PackEmbedding(const EmbeddingSpec& spec, const uint8_t* data, const float* scale, void* packed,
                   size_t packed_bytes) {
  const size_t needed = PackedBytesEmbedding(spec);
  if (packed_bytes != needed) Fail(std::to_string(needed) + " bytes needed, got " + std::to_string(packed_bytes));
  for (int64_t r = 0; r < spec.rows; ++r)
    if (!(scale[r] > 0.0f) || !std::isfinite(scale[r]))
      Fail("scale of row " + std::to_string(r) + " is " + std::to_string(scale[r]) +
           "; scales are finite and greater than 0");
  std::memset(packed, 0, packed_bytes);
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.bytes = needed;
  header.rows = spec.rows;
  header.dim = spec.dim;
  header.bits = spec.bits;
  std::memcpy(packed, &header, sizeof header);
  const View view = ViewPacked(packed, packed_bytes);
  for (int64_t r = 0; r < spec.rows; ++r) {
    std::memcpy(view.rows + r * view.stride, scale + r, sizeof *scale);
    std::memcpy(view.rows + r * view.stride + 4, data + r * spec.row_bytes(), static_cast<size_t>(spec.row_bytes()));
  }
}

EmbeddingSpec SpecOfEmbedding(const void* packed, size_t packed_bytes) { return ViewPacked(packed, packed_bytes).spec; }

void UnpackEmbedding(const void* packed, size_t packed_bytes, uint8_t* data, float* scale) {
  const View view = ViewPacked(packed, packed_bytes);
  const int64_t bytes = view.spec.row_bytes();
  for (int64_t r = 0; r < view.spec.rows; ++r) {
    std::memcpy(scale + r, view.rows + r * view.stride, sizeof *scale);
    std::memcpy(data + r * bytes, view.rows + r * view.stride + 4, static_cast<size_t>(bytes));
  }
}

void EmbeddingS8(const void* packed, size_t packed_bytes, int64_t count, const int64_t* indices, float* y,
                 const Executor& executor) {
  const View view = ViewPacked(packed, packed_bytes);
  CheckIndices(view, count, indices);
  Gather job{view, *Selected().embedding, count, indices, y};
  job.tasks = TasksFor(count, view.spec.dim, count, executor);
  if (job.tasks <= 1)
    RunGather(&job, 0);
  else
    executor.run(job.tasks, RunGather, &job);
}

void EmbeddingBagS8(const EmbeddingBagArgs& args, const Executor& executor) {
  const View view = ViewPacked(args.packed, args.packed_bytes);
  const int32_t mode = static_cast<int32_t>(args.mode);
  if (mode < 0 || mode > static_cast<int32_t>(BagMode::kMax)) throw Error("embedding: unknown mode of a bag");
  if (args.weights != nullptr && args.mode != BagMode::kSum) throw Error("embedding: only a sum has weights");
  bool rises = args.offsets[0] == 0 && args.offsets[args.bags] == args.count;
  for (int64_t bag = 0; bag < args.bags; ++bag) rises = rises && args.offsets[bag] <= args.offsets[bag + 1];
  if (!rises)
    throw Error("embedding: offsets must rise from 0 to the number of indices, " + std::to_string(args.count));
  CheckIndices(view, args.count, args.indices);
  Bags job{view, *Selected().embedding, args};
  job.tasks = TasksFor(args.count, view.spec.dim, args.bags, executor);
  if (job.tasks <= 1)
    RunBags(&job, 0);
  else
    executor.run(job.tasks, RunBags, &job);
}

}  // namespace tersor
