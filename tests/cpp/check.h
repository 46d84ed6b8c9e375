// The few lines of a test framework that these tests need. A test file is a list of TEST(name) { ... } bodies;
// check.cc has main: it runs them all, or those whose name holds its argument.
#pragma once
#include <string>

namespace tersor::testing {

struct Registered {
  Registered(const char* name, void (*body)());
};

// Prints and counts; only the first failures of a test are printed.
[[gnu::format(printf, 3, 4)]] void Fail(const char* file, int line, const char* format, ...);
bool TooManyFailures();  // loops over many shapes stop early

// The message of the tersor::Error that body() throws; an empty string when it throws none.
std::string ErrorOf(void (*body)(void*), void* context);
template <typename Body>
std::string ErrorOf(Body body) {
  return ErrorOf([](void* context) { (*static_cast<Body*>(context))(); }, &body);
}
inline bool Holds(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// body() in a forked child; its return value, or -1 when the child died of a signal or an exception.
int InChild(int (*body)());

// Fewer shapes, for emulators: TERSOR_TEST_QUICK is set and not 0.
bool Quick();
// Run by an emulator: TERSOR_TEST_LAUNCHER is set and not empty.
bool Emulated();

}  // namespace tersor::testing

#define TEST(name)                                                           \
  static void name();                                                        \
  static const ::tersor::testing::Registered registered_##name(#name, name); \
  static void name()

#define CHECK(condition)                                                             \
  do {                                                                               \
    if (!(condition)) ::tersor::testing::Fail(__FILE__, __LINE__, "%s", #condition); \
  } while (0)

// CHECK with a printf message instead of the condition's text.
#define CHECK_OR(condition, ...)                                                \
  do {                                                                          \
    if (!(condition)) ::tersor::testing::Fail(__FILE__, __LINE__, __VA_ARGS__); \
  } while (0)
