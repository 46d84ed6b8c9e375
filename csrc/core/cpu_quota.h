// How many CPUs a container's quota allows: the parsing, free of any file access.
#pragma once
#include <cstdint>
#include <string>

namespace tersor {

// Whole CPUs of a quota, rounded down and at least 1; 0 means no limit (or text that is not a quota).
int32_t CpusFromCpuMax(const std::string& cpu_max);  // cgroup v2 cpu.max: "max 100000", "150000 100000"
int32_t CpusFromCfs(const std::string& quota, const std::string& period);  // cgroup v1, quota "-1": no limit

// Where /proc/self/cgroup puts this process: paths below the mount points, empty when there is none.
struct CgroupPaths {
  std::string unified;  // v2, from "0::/user.slice/app"
  std::string cpu;      // v1, from "4:cpu,cpuacct:/docker/1234"
};
CgroupPaths ParseProcSelfCgroup(const std::string& text);

// The tightest quota from the process's own cgroup up to the root; 0 when nothing limits it. `read` returns
// a file's text, or an empty string when there is no such file. In a container the path of the process may
// not exist below the mount point: the walk then ends at the mount point itself, which is the container's.
int32_t QuotaCpus(const CgroupPaths& paths, std::string (*read)(const std::string& path));

}  // namespace tersor
