#include "core/cpu_quota.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "tersor/executor.h"

namespace tersor {
namespace {

// A whole number at the start of text; -1 when there is none.
int64_t Number(const char* text) {
  char* end = nullptr;
  const long long value = std::strtoll(text, &end, 10);
  return end == text ? -1 : static_cast<int64_t>(value);
}

int32_t WholeCpus(int64_t quota, int64_t period) {
  if (quota <= 0 || period <= 0) return 0;
  return static_cast<int32_t>(std::min<int64_t>(std::max<int64_t>(quota / period, 1), INT32_MAX));
}

int32_t Tighter(int32_t a, int32_t b) {
  if (a == 0 || b == 0) return std::max(a, b);
  return std::min(a, b);
}

bool ListHolds(const std::string& comma_separated, const std::string& name) {
  return ("," + comma_separated + ",").find("," + name + ",") != std::string::npos;
}

std::string ReadSmallFile(const std::string& path) {
  std::string text;
  std::FILE* file = std::fopen(path.c_str(), "re");
  if (file == nullptr) return text;
  char buffer[1024];
  for (size_t got; (got = std::fread(buffer, 1, sizeof buffer, file)) > 0;) text.append(buffer, got);
  std::fclose(file);
  return text;
}

int32_t AffinityCpus() {
  for (size_t cpus = 1024; cpus <= (size_t{1} << 20); cpus *= 4) {  // the kernel's mask may be wider than ours
    cpu_set_t* set = CPU_ALLOC(cpus);
    if (set == nullptr) break;
    const size_t bytes = CPU_ALLOC_SIZE(cpus);
    const int count = sched_getaffinity(0, bytes, set) == 0 ? CPU_COUNT_S(bytes, set) : 0;
    CPU_FREE(set);
    if (count > 0) return count;
  }
  return static_cast<int32_t>(sysconf(_SC_NPROCESSORS_ONLN));
}

// Calls quota(folder) for mount + path, then for each parent up to the mount point.
template <typename Quota>
int32_t WalkUp(const std::string& mount, std::string path, Quota quota) {
  int32_t tightest = 0;
  for (;;) {
    while (!path.empty() && path.back() == '/') path.pop_back();
    tightest = Tighter(tightest, quota(mount + path));
    if (path.empty()) return tightest;
    path.resize(path.find_last_of('/') == std::string::npos ? 0 : path.find_last_of('/'));
  }
}

}  // namespace

int32_t CpusFromCpuMax(const std::string& cpu_max) {
  const size_t space = cpu_max.find(' ');
  if (space == std::string::npos) return 0;
  return WholeCpus(Number(cpu_max.c_str()), Number(cpu_max.c_str() + space));
}

int32_t CpusFromCfs(const std::string& quota, const std::string& period) {
  return WholeCpus(Number(quota.c_str()), Number(period.c_str()));
}

CgroupPaths ParseProcSelfCgroup(const std::string& text) {
  CgroupPaths paths;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string line = text.substr(begin, end - begin);  // hierarchy:controllers:path
    begin = end + 1;
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1), path = line.substr(second + 1);
    if (controllers.empty())
      paths.unified = path;
    else if (ListHolds(controllers, "cpu"))
      paths.cpu = path;
  }
  return paths;
}

int32_t QuotaCpus(const CgroupPaths& paths, std::string (*read)(const std::string& path)) {
  int32_t tightest = 0;
  if (!paths.unified.empty()) {
    const auto quota = [read](const std::string& folder) { return CpusFromCpuMax(read(folder + "/cpu.max")); };
    tightest = Tighter(tightest, WalkUp("/sys/fs/cgroup", paths.unified, quota));
  }
  if (!paths.cpu.empty()) {
    const auto quota = [read](const std::string& folder) {
      return CpusFromCfs(read(folder + "/cpu.cfs_quota_us"), read(folder + "/cpu.cfs_period_us"));
    };
    for (const char* mount : {"/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"})
      tightest = Tighter(tightest, WalkUp(mount, paths.cpu, quota));
  }
  return tightest;
}

int32_t UsableCpus() {
  const int32_t affinity = std::max(AffinityCpus(), 1);
  return Tighter(affinity, QuotaCpus(ParseProcSelfCgroup(ReadSmallFile("/proc/self/cgroup")), ReadSmallFile));
}

}  // namespace tersor
