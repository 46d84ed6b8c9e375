// Runs a packed graph: plans where each tensor of a picture lies, then node after node.
#include "tersor/graph_s8.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <vector>

#include "core/scratch.h"
#include "ops/packed_graph_s8.h"
#include "ops/range.h"

namespace tersor {
namespace {

struct Value {
  int64_t channels, height, width;
  size_t at;         // in the arena
  int64_t last_use;  // the last node that reads it
  int64_t bytes() const { return channels * height * width; }
};

struct Plan {
  std::vector<Value> values;  // the last one is the result and not in the arena
  size_t arena = 0;
};

ConvShape Window(const PackedGraphNode& node, const Value& in) {
  ConvShape window = node.shape;
  window.in_channels = window.out_channels = window.groups = in.channels;
  window.dilation_h = window.dilation_w = 1;
  if (node.whole != 0) {
    window.kernel_h = in.height;
    window.kernel_w = in.width;
    window.stride_h = window.stride_w = 1;
    window.pad_top = window.pad_left = window.pad_bottom = window.pad_right = 0;
  }
  return window;
}

Value ResultOf(int64_t i, const PackedGraphNode& node, const std::vector<Value>& values) {
  const Value& in = values[static_cast<size_t>(node.input)];
  const auto fail = [i](const std::string& what) { throw Error("graph_s8: node " + std::to_string(i) + ": " + what); };
  Value out{in.channels, in.height, in.width, 0, i};
  const GraphNodeKind kind = static_cast<GraphNodeKind>(node.kind);
  if (kind != GraphNodeKind::kAdd) {
    const ConvShape shape = kind == GraphNodeKind::kPool ? Window(node, in) : node.shape;
    if (shape.in_channels != in.channels)
      fail("expected " + std::to_string(shape.in_channels) + " channels, got " + std::to_string(in.channels));
    out.channels = shape.out_channels;
    out.height = shape.OutHeight(in.height);
    out.width = shape.OutWidth(in.width);
    if (out.height < 1 || out.width < 1)
      fail("its window does not fit a picture of " + std::to_string(in.height) + " x " + std::to_string(in.width));
  }
  if (node.other >= 0) {
    const Value& other = values[static_cast<size_t>(node.other)];
    if (other.channels != out.channels || other.height != out.height || other.width != out.width)
      fail("the summands have different shapes");
  }
  return out;
}

size_t Padded(const Value& value) {
  return (static_cast<size_t>(value.bytes()) + kCacheLine - 1) / kCacheLine * kCacheLine;
}

// The larger ones first: each takes the lowest place that no other one, placed before, has at the same time. Value v is
// there from node v - 1, which makes it, to its last use.
void PlaceAll(Plan& plan, int64_t count) {
  std::vector<int64_t> order, placed;
  for (int64_t v = 0; v < count; ++v) order.push_back(v);
  const auto at = [&plan](int64_t v) -> Value& { return plan.values[static_cast<size_t>(v)]; };
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return at(a).bytes() > at(b).bytes(); });
  for (int64_t v : order) {
    Value& mine = at(v);
    const size_t size = Padded(mine);
    for (bool moved = true; moved;) {
      moved = false;
      for (int64_t u : placed) {
        const Value& other = at(u);
        const bool together = v - 1 <= other.last_use && u - 1 <= mine.last_use;
        const size_t end = other.at + Padded(other);
        if (!together || other.at >= mine.at + size || end <= mine.at) continue;
        mine.at = end;
        moved = true;
      }
    }
    placed.push_back(v);
    plan.arena = std::max(plan.arena, mine.at + size);
  }
}

Plan MakePlan(const PackedGraphView& graph, int64_t height, int64_t width) {
  constexpr int64_t kMost = int64_t{1} << 24;
  if (height < 1 || width < 1 || height > kMost || width > kMost ||
      graph.header->channels * height > (int64_t{1} << 40) / width)
    throw Error("graph_s8: expected pictures of at least one pixel, got " + std::to_string(height) + " x " +
                std::to_string(width));
  Plan plan;
  plan.values.push_back({graph.header->channels, height, width, 0, -1});
  for (int64_t i = 0; i < graph.nodes(); ++i) {
    plan.values.push_back(ResultOf(i, graph.node[i], plan.values));
    for (int32_t read : {graph.node[i].input, graph.node[i].other})
      if (read >= 0) plan.values[static_cast<size_t>(read)].last_use = i;
  }
  PlaceAll(plan, graph.nodes());
  return plan;
}

class Runner {
 public:
  Runner(const PackedGraphView& graph, const Plan& plan, const GraphS8Args& args)
      : graph_(graph), plan_(plan), args_(args), as_(plan.values.size()) {
    for (int64_t i = 0; i < graph.nodes(); ++i) {
      const PackedGraphNode& node = graph.node[i];
      const bool keeps = node.kind == static_cast<int32_t>(GraphNodeKind::kPool) &&
                         node.pooling == static_cast<int32_t>(Pooling::kMax);
      as_[static_cast<size_t>(i) + 1] = keeps ? as_[static_cast<size_t>(node.input)] : node.as;
      if (node.kind == static_cast<int32_t>(GraphNodeKind::kConv)) last_conv_ = i;
    }
  }

  void Run(int64_t image, uint8_t* arena, const Executor& executor) {
    arena_ = arena;
    const Value& in = plan_.values.front();
    const Value& out = plan_.values.back();
    float* y = args_.y + image * out.bytes();
    const Quantized& given = graph_.header->input;
    QuantizeImages({1, in.channels, in.height, in.width, args_.x + image * in.bytes(), args_.channels_last, Bytes(0),
                    given.scale, given.zero_point, &as_[0]},
                   executor);
    if (std::isnan(as_[0].scale)) {
      std::fill_n(y, out.bytes(), std::numeric_limits<float>::quiet_NaN());
      return;
    }
    for (int64_t i = 0; i < graph_.nodes(); ++i) RunNode(i, i + 1 == graph_.nodes() ? y : nullptr, executor);
  }

 private:
  uint8_t* Bytes(int64_t value) const { return arena_ + plan_.values[static_cast<size_t>(value)].at; }
  const uint8_t* BytesOrNull(int32_t value) const { return value < 0 ? nullptr : Bytes(value); }
  Quantized As(int32_t value) const { return value < 0 ? Quantized{} : as_[static_cast<size_t>(value)]; }

  void RunNode(int64_t i, float* y_f32, const Executor& executor) {
    const PackedGraphNode& node = graph_.node[i];
    const Value& in = plan_.values[static_cast<size_t>(node.input)];
    uint8_t* y = y_f32 != nullptr ? nullptr : Bytes(i + 1);
    const ConvActivation activation = static_cast<ConvActivation>(node.activation);
    const Quantized y_as = as_[static_cast<size_t>(i) + 1];
    switch (static_cast<GraphNodeKind>(node.kind)) {
      case GraphNodeKind::kConv: {
        const float* bias = args_.bias != nullptr && i == last_conv_ ? args_.bias : graph_.Bias(i);
        return ConvS8({1, in.height, in.width, Bytes(node.input), As(node.input), graph_.base + node.packed_at,
                       node.packed_bytes, bias, BytesOrNull(node.other), As(node.other), activation, y_f32, y, y_as},
                      executor);
      }
      case GraphNodeKind::kPool:
        return PoolS8({1, in.height, in.width, Window(node, in), static_cast<Pooling>(node.pooling), Bytes(node.input),
                       As(node.input), y, y_as},
                      executor);
      case GraphNodeKind::kAdd:
        return AddS8({in.bytes(), Bytes(node.input), As(node.input), BytesOrNull(node.other), As(node.other),
                      activation, y_f32, y, y_as},
                     executor);
    }
  }

  const PackedGraphView& graph_;
  const Plan& plan_;
  const GraphS8Args& args_;
  std::vector<Quantized> as_;  // of every value; that of the input by each picture
  int64_t last_conv_ = -1;
  uint8_t* arena_ = nullptr;
};

struct Tensors {  // memory for those of one picture
  explicit Tensors(size_t bytes) : begin(static_cast<uint8_t*>(std::aligned_alloc(kCacheLine, bytes))) {}
  ~Tensors() { std::free(begin); }
  Tensors(const Tensors&) = delete;
  Tensors& operator=(const Tensors&) = delete;
  uint8_t* begin;
};

struct Job {
  const PackedGraphView& graph;
  const Plan& plan;
  const GraphS8Args& args;
  int32_t tasks;
  std::vector<std::string> errors;  // by task
};

void RunImages(void* context, int32_t task) {
  Job& job = *static_cast<Job*>(context);
  const Executor& executor = SerialExecutor();
  try {
    const Tensors arena(job.plan.arena);
    if (arena.begin == nullptr) throw Error("graph_s8: out of memory");
    Runner runner(job.graph, job.plan, job.args);
    const Range images = EvenSplit(job.args.batch, job.tasks)[task];
    for (int64_t image = images.begin; image < images.end; ++image) runner.Run(image, arena.begin, executor);
  } catch (const std::exception& error) {
    job.errors[static_cast<size_t>(task)] = error.what();
  }
}

}  // namespace

GraphExtents OutputOfGraphS8(const void* packed, size_t packed_bytes, int64_t height, int64_t width) {
  const Value out = MakePlan(ViewPackedGraph(packed, packed_bytes), height, width).values.back();
  return {out.channels, out.height, out.width};
}

size_t ArenaBytesGraphS8(const void* packed, size_t packed_bytes, int64_t height, int64_t width) {
  return MakePlan(ViewPackedGraph(packed, packed_bytes), height, width).arena;
}

void GraphS8(const GraphS8Args& args, const Executor& executor) {
  const PackedGraphView graph = ViewPackedGraph(args.packed, args.packed_bytes);
  const Plan plan = MakePlan(graph, args.height, args.width);
  if (args.batch < 0 || (args.batch > 0 && (args.x == nullptr || args.y == nullptr)))
    throw Error("graph_s8: a negative batch, or x or y is null");
  if (args.batch == 0) return;
  if (executor.threads > 1 && args.batch > 1) {  // a picture each
    Job job{graph, plan, args, static_cast<int32_t>(std::min<int64_t>(executor.threads, args.batch)), {}};
    job.errors.resize(static_cast<size_t>(job.tasks));
    executor.run(job.tasks, RunImages, &job);
    for (const std::string& error : job.errors)
      if (!error.empty()) throw Error(error);
    return;
  }
  const Tensors arena(plan.arena);
  if (arena.begin == nullptr) throw Error("graph_s8: out of memory");
  Runner runner(graph, plan, args);
  for (int64_t image = 0; image < args.batch; ++image) runner.Run(image, arena.begin, executor);
}

}  // namespace tersor
