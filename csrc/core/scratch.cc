#include "core/scratch.h"

#include <cstdlib>

namespace tersor {
namespace {

struct Block {
  char* data = nullptr;
  size_t bytes = 0;
  ~Block() { std::free(data); }
};

thread_local Block blocks[kArenas];

void Release(Block& block) {
  std::free(block.data);
  block.data = nullptr;
  block.bytes = 0;
}

}  // namespace

Scratch::Scratch(size_t bytes, Arena arena) : arena_(static_cast<int>(arena)) {
  Block& block = blocks[arena_];
  if (bytes > block.bytes) {
    Release(block);
    block.data = static_cast<char*>(std::aligned_alloc(kCacheLine, Padded<char>(bytes)));
    block.bytes = block.data == nullptr ? 0 : Padded<char>(bytes);
  }
  next_ = block.data;
}

Scratch::~Scratch() {
  Block& block = blocks[arena_];
  if (block.bytes > kScratchKeepBytes) Release(block);
}

}  // namespace tersor
