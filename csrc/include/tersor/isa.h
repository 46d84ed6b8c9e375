// Which instruction sets the library was built with, which this CPU runs, and which is in use.
#pragma once
#include <string>
#include <vector>

#include "tersor/error.h"

namespace tersor {

// Names in the order of csrc/kernels/isa_list.cmake, worst first.
TERSOR_API std::vector<std::string> BuiltIsas();      // compiled into this binary
TERSOR_API std::vector<std::string> AvailableIsas();  // of those, what this CPU and OS can run under the cap
TERSOR_API std::string ActiveIsa();                   // the best of AvailableIsas()

// Caps dispatch at `name`, as the environment variable TERSOR_ISA does at start; empty lifts the cap.
// Throws Error, listing what exists, when the name is unknown or the CPU cannot run it. Weights packed
// before stay valid: a packed weight names the kernel that reads it.
TERSOR_API void SetIsaCap(const std::string& name);

// Runs the active instruction set's int8 multiply-add on registers alone, the ceiling of one core; returns how many
// multiply-adds it did. The caller takes the time.
TERSOR_API int64_t RunInt8Peak(int64_t iterations);

}  // namespace tersor
