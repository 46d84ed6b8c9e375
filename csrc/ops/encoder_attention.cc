#include "ops/encoder_attention.h"

#include <algorithm>
#include <cmath>

#include "ops/packed_s8.h"

namespace tersor {
namespace {

constexpr float kLog2E = 0x1.715476p0f;

// The panels of one head and block of a sequence, and the tokens that are in them.
struct Panels {
  int16_t *keys, *values;
  Range tokens;
};

Panels PanelsOf(const EncoderBlockJob& job, int64_t sequence, int64_t block, int64_t head) {
  const Range all = {job.start[sequence], job.start[sequence + 1]};
  const int64_t begin = all.begin + block * kAttentionKeys, live = std::min<int64_t>(kAttentionKeys, all.end - begin);
  const int64_t panel = RoundUp(live, 16) * job.depth16();  // of the keys of a head, and of its values
  int16_t* first = job.panels + job.panel_at[sequence] +
                   2 * job.depth16() * job.block.config.heads * block * kAttentionKeys + 2 * panel * head;
  return {first, first + panel, {begin, begin + live}};
}

void Pack(const EncoderBlockJob& job, int64_t head, Range tokens, int16_t* keys, int16_t* values) {
  const int64_t width = job.block.width(), depth = job.block.config.head_dim;
  const int16_t* row = job.QkvOf(tokens.begin) + head * depth;
  job.kernels.attention->pack(static_cast<int32_t>(tokens.count()), static_cast<int32_t>(depth), row + width,
                              row + 2 * width, job.ld_qkv, keys, values);
}

}  // namespace

EncoderAttention::EncoderAttention(const EncoderBlockJob& job, int64_t rows)
    : job_(job),
      kernel_(*job.kernels.attention),
      rows_(rows),
      depth_(job.block.config.head_dim),
      width_(job.block.width()),
      blocks_((job.args.tokens + kAttentionKeys - 1) / kAttentionKeys) {
  const int64_t keys = std::min<int64_t>(RoundUp(job.args.tokens, 16), kAttentionKeys), depth = RoundUp(depth_, 16);
  key_panel_ = value_panel_ = static_cast<size_t>(keys * depth);
}

size_t EncoderAttention::ScratchBytes() const {
  const size_t rows = static_cast<size_t>(rows_), blocks = static_cast<size_t>(blocks_);
  return Scratch::Padded<int16_t>(key_panel_) + Scratch::Padded<int16_t>(value_panel_) +
         2 * Scratch::Padded<float>(blocks * kAttentionKeys) + Scratch::Padded<float>(blocks) +
         2 * Scratch::Padded<float>(rows) +
         (job_.args.score_bias != nullptr ? Scratch::Padded<float>(rows * kAttentionKeys) : 0);
}

void EncoderAttention::Take(Scratch& scratch) {
  const size_t rows = static_cast<size_t>(rows_), blocks = static_cast<size_t>(blocks_);
  keys_ = scratch.Take<int16_t>(key_panel_);
  values_ = scratch.Take<int16_t>(value_panel_);
  key_scale_ = scratch.Take<float>(blocks * kAttentionKeys);
  share_ = scratch.Take<float>(blocks * kAttentionKeys);
  unit_ = scratch.Take<float>(blocks);
  max_ = scratch.Take<float>(rows);
  sum_ = scratch.Take<float>(rows);
  if (job_.args.score_bias != nullptr) bias_ = scratch.Take<float>(rows * kAttentionKeys);
}

// Scales of the keys, and of each value row its share of the largest scale of its block.
void EncoderAttention::PrepareKeys(Range keys) {
  const int64_t origin = job_.rows().begin;
  for (int64_t block = 0, begin = keys.begin; begin < keys.end; ++block, begin += kAttentionKeys) {
    const int64_t live = std::min<int64_t>(kAttentionKeys, keys.end - begin), padded = RoundUp(live, 16);
    const float *k = job_.kv_scale[0] + (begin - origin), *v = job_.kv_scale[1] + (begin - origin);
    float *key_scale = key_scale_ + block * kAttentionKeys, *share = share_ + block * kAttentionKeys;
    float largest = v[0];
    for (int64_t j = 1; j < live; ++j) largest = std::isnan(v[j]) || largest < v[j] ? v[j] : largest;
    for (int64_t j = 0; j < live; ++j) {
      if (std::isnan(v[j])) largest = v[j];
      key_scale[j] = k[j];
      share[j] = v[j] / largest * static_cast<float>(kAttentionWeightLimit);
    }
    std::fill(key_scale + live, key_scale + padded, 0.0f);
    std::fill(share + live, share + padded, 0.0f);
    unit_[block] = largest / static_cast<float>(kAttentionWeightLimit);
  }
}

// The bias of these scores, in units of log2.
const float* EncoderAttention::GatherBias(int64_t head, Range keys, Range queries) {
  const int64_t tokens = job_.args.tokens;
  for (int64_t i = 0; i < queries.count(); ++i) {
    const float* row = job_.args.score_bias + (head * tokens + job_.position[queries.begin + i] % tokens) * tokens;
    for (int64_t j = 0; j < keys.count(); ++j)
      bias_[i * kAttentionKeys + j] = row[job_.position[keys.begin + j] % tokens] * kLog2E;
  }
  return bias_;
}

void EncoderAttention::PackShared(const EncoderBlockJob& job, int64_t sequence, int64_t block, int64_t head) {
  const Panels to = PanelsOf(job, sequence, block, head);
  Pack(job, head, to.tokens, to.keys, to.values);
}

void EncoderAttention::RunBlock(int64_t sequence, int64_t head, Range keys, int64_t block, Range queries, float* out,
                                int64_t ld_out) {
  const int64_t live = std::min<int64_t>(kAttentionKeys, keys.count() - block * kAttentionKeys);
  const Range these = {keys.begin + block * kAttentionKeys, keys.begin + block * kAttentionKeys + live};
  Panels panels = {keys_, values_, these};
  if (job_.panel_at[sequence] >= 0)
    panels = PanelsOf(job_, sequence, block, head);
  else
    Pack(job_, head, these, keys_, values_);
  AttentionArgs g{};
  g.rows = static_cast<int32_t>(queries.count());
  g.keys = static_cast<int32_t>(live);
  g.depth = static_cast<int32_t>(depth_);
  g.q = job_.QkvOf(queries.begin) + head * depth_;
  g.ldq = job_.ld_qkv;
  g.q_scale = job_.q_scale + (queries.begin - job_.rows().begin);
  g.key_panel = panels.keys;
  g.value_panel = panels.values;
  g.key_scale = key_scale_ + block * kAttentionKeys;
  g.value_share = share_ + block * kAttentionKeys;
  g.value_unit = unit_[block];
  if (bias_ != nullptr) {
    g.bias = GatherBias(head, these, queries);
    g.ld_bias = kAttentionKeys;
  }
  g.first = block == 0;
  g.last = these.end == keys.end;
  g.max = max_;
  g.sum = sum_;
  g.out = out + head * depth_;
  g.ld_out = ld_out;
  kernel_.attend(g);
}

void EncoderAttention::Run(int64_t sequence, Range queries, float* out, int64_t ld_out) {
  const Range keys = {job_.start[sequence], job_.start[sequence + 1]};
  PrepareKeys(keys);
  // A head whose depth is no multiple of 16 writes into the columns of the next one, which comes after it.
  for (int64_t head = 0; head < job_.block.config.heads; ++head)
    for (int64_t block = 0; block * kAttentionKeys < keys.count(); ++block)
      RunBlock(sequence, head, keys, block, queries, out, ld_out);
}

}  // namespace tersor
