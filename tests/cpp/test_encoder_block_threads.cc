// However the rows are split among threads, the result has the same bits.
#include "core/registry.h"
#include "encoder_ref.h"
#include "linear_run.h"

namespace {

using namespace tersor;
using namespace tersor::testing;

std::vector<float> Run(const BlockCase& c, const std::vector<float>& x, const std::vector<uint8_t>& keep, int64_t batch,
                       const Executor& executor) {
  std::vector<float> y(x.size(), -1.0f);
  EncoderBlockArgs args{};
  args.batch = batch;
  args.tokens = static_cast<int64_t>(keep.size()) / batch;
  args.x = x.data();
  args.ldx = args.ldy = c.config.hidden;
  args.keep = keep.data();
  args.packed = c.packed.data();
  args.packed_bytes = c.packed.size();
  args.y = y.data();
  EncoderBlock(args, executor);
  return y;
}

}  // namespace

TEST(TasksAndThreads) {
  UnderEachIsa([] {
    const BlockCase c({96, 3, 32, 160, false, Activation::kGelu, {1e-5f, 1e-5f}, 0.2f}, 1);
    Random random(2);
    std::vector<float> x;
    for (int i = 0; i < 4 * 30 * 96; ++i) x.push_back(random.Uniform(-1.0f, 1.0f));
    std::vector<uint8_t> keep(120, 1);
    for (size_t i = 0; i < keep.size(); ++i) keep[i] = i < 30 ? i % 4 == 0 : i < 50 || i > 75;
    const std::vector<float> want = Run(c, x, keep, 4, SerialExecutor());
    for (const int32_t tasks : {2, 3, 8, 70}) CHECK(Run(c, x, keep, 4, {tasks, PoolExecutor().run}) == want);
  });
}
