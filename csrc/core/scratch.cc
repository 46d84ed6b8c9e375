#include "core/scratch.h"

#include <cstdlib>

namespace tersor {
namespace {

struct Block {
  char* data = nullptr;
  size_t bytes = 0;
  ~Block() { std::free(data); }
};

thread_local Block block;

void Release() {
  std::free(block.data);
  block.data = nullptr;
  block.bytes = 0;
}

}  // namespace

Scratch::Scratch(size_t bytes) {
  if (bytes > block.bytes) {
    Release();
    block.data = static_cast<char*>(std::aligned_alloc(kCacheLine, Padded<char>(bytes)));
    block.bytes = block.data == nullptr ? 0 : Padded<char>(bytes);
  }
  next_ = block.data;
}

Scratch::~Scratch() {
  if (block.bytes > kScratchKeepBytes) Release();
}

}  // namespace tersor
