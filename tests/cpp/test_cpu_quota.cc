#include <map>

#include "check.h"
#include "core/cpu_quota.h"
#include "tersor/executor.h"

namespace {

using tersor::CgroupPaths;
using tersor::CpusFromCfs;
using tersor::CpusFromCpuMax;
using tersor::ParseProcSelfCgroup;
using tersor::QuotaCpus;

std::map<std::string, std::string> files;

std::string ReadFake(const std::string& path) {
  const auto file = files.find(path);
  return file == files.end() ? "" : file->second;
}

}  // namespace

TEST(CpuMaxRoundsDown) {
  CHECK(CpusFromCpuMax("400000 100000\n") == 4);
  CHECK(CpusFromCpuMax("399999 100000\n") == 3);
  CHECK(CpusFromCpuMax("50000 100000\n") == 1);
  CHECK(CpusFromCpuMax("150000 50000") == 3);
  CHECK(CpusFromCpuMax("max 100000\n") == 0);
  CHECK(CpusFromCpuMax("") == 0);
  CHECK(CpusFromCpuMax("400000") == 0);
  CHECK(CpusFromCpuMax("400000 0") == 0);
  CHECK(CpusFromCpuMax("garbage text") == 0);
  CHECK(CpusFromCpuMax("9223372036854775807 1") == INT32_MAX);
}

TEST(CfsQuotaRoundsDown) {
  CHECK(CpusFromCfs("-1\n", "100000\n") == 0);
  CHECK(CpusFromCfs("250000\n", "100000\n") == 2);
  CHECK(CpusFromCfs("10000", "100000") == 1);
  CHECK(CpusFromCfs("", "") == 0);
}

TEST(ProcSelfCgroupOfBothVersions) {
  const CgroupPaths unified = ParseProcSelfCgroup("0::/user.slice/app.service\n");
  CHECK(unified.unified == "/user.slice/app.service" && unified.cpu.empty());
  const CgroupPaths old = ParseProcSelfCgroup("12:cpuset:/\n4:cpu,cpuacct:/docker/1f:2e\n1:name=systemd:/docker/1f\n");
  CHECK(old.cpu == "/docker/1f:2e" && old.unified.empty());
  const CgroupPaths reversed = ParseProcSelfCgroup("3:cpuacct,cpu:/x");
  CHECK(reversed.cpu == "/x");
  const CgroupPaths none = ParseProcSelfCgroup("nonsense\n\n7:cpuset:/a\n");
  CHECK(none.unified.empty() && none.cpu.empty());
}

TEST(TightestQuotaUpToTheRoot) {
  files = {{"/sys/fs/cgroup/a/b/cpu.max", "max 100000\n"},
           {"/sys/fs/cgroup/a/cpu.max", "300000 100000\n"},
           {"/sys/fs/cgroup/cpu.max", "800000 100000\n"}};
  CHECK(QuotaCpus({"/a/b", ""}, ReadFake) == 3);
  CHECK(QuotaCpus({"/a/b/", ""}, ReadFake) == 3);
  CHECK(QuotaCpus({"/", ""}, ReadFake) == 8);
  CHECK(QuotaCpus({"", ""}, ReadFake) == 0);
  files["/sys/fs/cgroup/a/b/cpu.max"] = "200000 100000\n";
  CHECK(QuotaCpus({"/a/b", ""}, ReadFake) == 2);
}

TEST(ContainerWhosePathIsOutsideItsMount) {
  files = {{"/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "500000\n"}, {"/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"}};
  CHECK(QuotaCpus({"", "/docker/0123"}, ReadFake) == 5);
  files = {{"/sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us", "200000\n"},
           {"/sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us", "100000\n"}};
  CHECK(QuotaCpus({"", "/x"}, ReadFake) == 2);
  files = {{"/sys/fs/cgroup/cpu.max", "150000 100000\n"}};
  CHECK(QuotaCpus({"/../../other", ""}, ReadFake) == 1);
  files.clear();
  CHECK(QuotaCpus({"/a", "/b"}, ReadFake) == 0);
}

TEST(UsableCpusIsPositive) { CHECK(tersor::UsableCpus() >= 1); }
