#include "check.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <vector>

#include "tersor/error.h"

namespace tersor::testing {
namespace {

constexpr int kPrinted = 10, kEnough = 100;

struct Test {
  const char* name;
  void (*body)();
};

std::vector<Test>& Tests() {
  static std::vector<Test> tests;
  return tests;
}

int failures = 0;  // of the running test

bool RunOne(const Test& test) {
  failures = 0;
  try {
    test.body();
  } catch (const std::exception& e) {
    Fail(test.name, 0, "threw: %s", e.what());
  }
  std::printf("%s %s (%d failures)\n", failures == 0 ? "ok  " : "FAIL", test.name, failures);
  std::fflush(stdout);
  return failures == 0;
}

}  // namespace

Registered::Registered(const char* name, void (*body)()) { Tests().push_back({name, body}); }

void Fail(const char* file, int line, const char* format, ...) {
  if (++failures > kPrinted) return;
  std::printf("%s:%d: ", file, line);
  va_list args;
  va_start(args, format);
  std::vprintf(format, args);
  va_end(args);
  std::printf("\n");
}

bool TooManyFailures() { return failures >= kEnough; }

std::string ErrorOf(void (*body)(void*), void* context) {
  try {
    body(context);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

int InChild(int (*body)()) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    int result = -1;
    try {
      result = body();
    } catch (const std::exception& e) {
      std::printf("child threw: %s\n", e.what());
    }
    std::fflush(stdout);
    _exit(result);
  }
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status)) return -1;
  return WEXITSTATUS(status) == 255 ? -1 : WEXITSTATUS(status);
}

bool Quick() {
  static const char* value = std::getenv("TERSOR_TEST_QUICK");
  return value != nullptr && std::strcmp(value, "0") != 0;
}

bool Emulated() {
  const char* value = std::getenv("TERSOR_TEST_LAUNCHER");
  return value != nullptr && *value != '\0';
}

}  // namespace tersor::testing

int main(int argc, char** argv) {
  using tersor::testing::Tests;
  int run = 0;
  bool good = true;
  for (const auto& test : Tests()) {
    if (argc > 1 && std::strstr(test.name, argv[1]) == nullptr) continue;
    ++run;
    good = tersor::testing::RunOne(test) && good;
  }
  if (run == 0) std::printf("no test matches\n");
  return good && run > 0 ? 0 : 1;
}
