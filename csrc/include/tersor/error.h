#pragma once
#include <stdexcept>

// Everything libtersor exports; the rest of the library is hidden.
#define TERSOR_API __attribute__((visibility("default")))

namespace tersor {

// What every public function throws on bad input: what was asked, what was got, what is possible.
class TERSOR_API Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace tersor
