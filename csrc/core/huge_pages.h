#pragma once
#include <cstddef>

namespace tersor {

// Asks the OS to back the huge pages that lie wholly inside the block with huge pages: a weight that is streamed
// from memory then misses the TLB less. Before the block is first written; a refusal changes nothing.
void AdviseHugePages(void* data, size_t bytes);

}  // namespace tersor
