// The op equals its parts put together, bit for bit, on every instruction set, wherever padding lies.
#include <cstring>
#include <string>

#include "core/registry.h"
#include "encoder_ref.h"
#include "linear_run.h"

namespace {

using tersor::Activation;
using tersor::DType;
using tersor::EncoderBlockArgs;
using tersor::EncoderBlockConfig;
using namespace tersor::testing;

EncoderBlockConfig Config(int64_t hidden, int64_t heads, int64_t head_dim, int64_t ffn, bool norm_first = false,
                          Activation activation = Activation::kGelu) {
  return {hidden,     heads,      head_dim,        ffn,
          norm_first, activation, {1e-12f, 1e-6f}, 1.0f / std::sqrt(static_cast<float>(head_dim))};
}

std::vector<float> Input(int64_t count, uint64_t seed) {
  Random random(seed);
  std::vector<float> x;
  for (int64_t i = 0; i < count; ++i) x.push_back(random.Uniform(-2.0f, 2.0f));
  return x;
}

struct Call {
  int64_t batch, tokens;
  std::vector<float> x, score_bias;
  std::vector<uint8_t> keep;  // or empty
  DType dtype = DType::kF32;
};

// The real tokens of each sequence through Expected(), put where they belong; zeros elsewhere.
std::vector<float> ExpectedOf(const BlockCase& c, const Call& call) {
  const int64_t hidden = c.config.hidden;
  std::vector<float> y(call.x.size());
  for (int64_t s = 0; s < call.batch; ++s) {
    std::vector<int64_t> real;
    for (int64_t t = 0; t < call.tokens; ++t)
      if (call.keep.empty() || call.keep[static_cast<size_t>(s * call.tokens + t)] != 0) real.push_back(t);
    std::vector<float> rows, bias;
    const auto row = [&](int64_t t) { return (s * call.tokens + t) * hidden; };
    for (const int64_t t : real) rows.insert(rows.end(), call.x.begin() + row(t), call.x.begin() + row(t) + hidden);
    if (!call.score_bias.empty())
      for (int64_t h = 0; h < c.config.heads; ++h)
        for (const int64_t i : real)
          for (const int64_t j : real)
            bias.push_back(call.score_bias[static_cast<size_t>((h * call.tokens + i) * call.tokens + j)]);
    if (real.empty()) continue;
    const std::vector<float> part = c.Expected(rows, bias);
    for (size_t i = 0; i < real.size(); ++i)
      std::copy_n(part.begin() + static_cast<int64_t>(i) * hidden, hidden, y.begin() + row(real[i]));
  }
  return y;
}

void CheckCall(const BlockCase& c, Call call, const tersor::Executor& executor = tersor::SerialExecutor()) {
  const int64_t rows = call.batch * call.tokens, hidden = c.config.hidden;
  Matrix x(call.dtype, rows, hidden, 3), y(call.dtype, rows, hidden, 5);
  const auto round = [&](float v) {
    return call.dtype == DType::kF32 || std::isnan(v) ? v : HalfToFloat(call.dtype, FloatToHalf(call.dtype, v));
  };
  for (float& v : call.x) v = round(v);
  x.Set(call.x);
  EncoderBlockArgs args{};
  args.batch = call.batch;
  args.tokens = call.tokens;
  args.x = x.data();
  args.ldx = x.stride();
  args.dtype = call.dtype;
  args.keep = call.keep.empty() ? nullptr : call.keep.data();
  args.score_bias = call.score_bias.empty() ? nullptr : call.score_bias.data();
  args.packed = c.packed.data();
  args.packed_bytes = c.packed.size();
  args.y = y.data();
  args.ldy = y.stride();
  tersor::EncoderBlock(args, executor);
  const std::vector<float> want = ExpectedOf(c, call);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < hidden; ++j) {
      const float expected = round(want[static_cast<size_t>(i * hidden + j)]);
      CHECK_OR(SameFloat(y.Get(i, j), expected), "%s batch %d tokens %d head_dim %d: y[%d][%d] is %a, not %a",
               tersor::ActiveIsa().c_str(), static_cast<int>(call.batch), static_cast<int>(call.tokens),
               static_cast<int>(c.config.head_dim), static_cast<int>(i), static_cast<int>(j),
               static_cast<double>(y.Get(i, j)), static_cast<double>(expected));
      if (TooManyFailures()) return;
    }
  CHECK(y.OutsideUntouched());
}

Call Batch(const BlockCase& c, int64_t batch, int64_t tokens, uint64_t seed) {
  return {batch, tokens, Input(batch * tokens * c.config.hidden, seed), {}, {}};
}

}  // namespace

TEST(EveryFormAndHeadSize) {
  UnderEachIsa([] {
    uint64_t seed = 1;
    for (const int64_t head_dim : {16, 24, 40, 64, 128}) {
      if (Quick() && head_dim % 3 == 1) continue;
      const bool norm_first = seed % 2 == 0;
      BlockCase c(Config(72, 2, head_dim, 100, norm_first, static_cast<Activation>(seed % 5)), seed, seed % 3 == 0);
      CheckCall(c, Batch(c, 2, 9, seed));
      Call biased = Batch(c, 1, 20, seed + 50);
      biased.score_bias = Input(2 * 20 * 20, seed);
      CheckCall(c, biased);
      ++seed;
    }
  });
}

TEST(OneTokenAndManyTokens) {
  UnderEachIsa([] {
    const BlockCase c(Config(48, 3, 16, 64), 7);
    for (const int64_t tokens : {1, 2, 64, 65, 130}) CheckCall(c, Batch(c, 1, tokens, 3));
    if (!Quick()) CheckCall(c, Batch(c, 1, 511, 4));
  });
}

TEST(PaddingAnywhere) {
  UnderEachIsa([] {
    const BlockCase c(Config(40, 2, 25, 50), 8);
    Call call = Batch(c, 5, 12, 5);
    call.keep.assign(60, 1);
    for (int64_t t = 0; t < 12; ++t) {
      call.keep[static_cast<size_t>(t)] = t < 7;                   // at the end
      call.keep[static_cast<size_t>(12 + t)] = t % 3 != 1;         // holes
      call.keep[static_cast<size_t>(24 + t)] = 0;                  // nothing is real
      call.keep[static_cast<size_t>(36 + t)] = t == 11 ? 255 : 0;  // one token
    }
    CheckCall(c, call);
    call.score_bias = Input(2 * 12 * 12, 6);
    CheckCall(c, call);
    call.keep.assign(60, 0);
    CheckCall(c, call);
    for (const DType dtype : {DType::kBf16, DType::kF16}) {
      Call narrow = Batch(c, 2, 7, 7);
      narrow.dtype = dtype;
      narrow.keep.assign(14, 1);
      narrow.keep[3] = 0;
      CheckCall(c, narrow);
    }
  });
}

// More tokens than the scratch memory holds at a time.
TEST(GroupsOfSequences) {
  const BlockCase c(Config(32, 8, 128, 16), 9);
  Call call = Batch(c, 16, 50, 8);
  call.keep.assign(800, 1);
  for (size_t i = 0; i < 120; ++i) call.keep[i + 20] = 0;
  CheckCall(c, call);
}

TEST(NanStaysInItsSequence) {
  UnderEachIsa([] {
    const BlockCase c(Config(40, 2, 20, 50), 10);
    Call call = Batch(c, 3, 6, 9);
    call.x[(6 + 2) * 40 + 11] = NAN;
    call.keep.assign(18, 1);
    call.x[16 * 40] = INFINITY;
    call.keep[16] = 0;  // padding may hold anything
    CheckCall(c, call);
    CHECK(!std::isnan(ExpectedOf(c, call)[0]) && std::isnan(ExpectedOf(c, call)[6 * 40]));
  });
}

TEST(DamagedBytes) {
  BlockCase c(Config(32, 2, 16, 48), 11, true);
  const std::vector<float> x = Input(3 * 32, 1);
  std::vector<float> y(x.size());
  const auto run = [&](const std::vector<char>& packed) {
    EncoderBlockArgs args{};
    args.batch = 1;
    args.tokens = 3;
    args.x = x.data();
    args.ldx = args.ldy = 32;
    args.packed = packed.data();
    args.packed_bytes = packed.size();
    args.y = y.data();
    return ErrorOf([&] {
      tersor::InspectEncoderBlock(packed.data(), packed.size());
      tersor::EncoderBlock(args, tersor::SerialExecutor());
    });
  };
  CHECK(run(c.packed).empty());
  for (size_t at = 0; at < 136; ++at)  // what the header means
    for (const char flip : {'\x01', '\x40', '\xff'}) {
      std::vector<char> packed = c.packed;
      packed[at] = static_cast<char>(packed[at] ^ flip);
      if (at < 48 || (at >= 80 && at < 136))  // sizes, kinds: an error; floats may be other floats
        CHECK_OR(!run(packed).empty(), "byte %zu changed by %d went unnoticed", at, flip);
      else
        run(packed);
    }
  for (const size_t bytes : {size_t{0}, size_t{8}, size_t{191}, size_t{192}, size_t{1000}, c.packed.size() - 1})
    CHECK(!run(std::vector<char>(c.packed.begin(), c.packed.begin() + static_cast<int64_t>(bytes))).empty());
}

TEST(WrongArguments) {
  BlockCase c(Config(32, 2, 16, 48), 12);
  const auto pack = [&](EncoderBlockConfig config) {
    return ErrorOf([&] {
      BlockCase other = c;
      other.config = config;
      other.Pack();
    });
  };
  const EncoderBlockConfig good = c.config;
  EncoderBlockConfig bad = good;
  bad.head_dim = 8;
  CHECK(Holds(pack(bad), "the weight of qkv is [96, 32], expected [48, 32]"));
  bad = good;
  bad.head_dim = 0;
  CHECK(Holds(pack(bad), "head_dim=0"));
  bad.head_dim = 513;
  CHECK(Holds(pack(bad), "at most 512"));
  bad = good;
  bad.eps[1] = NAN;
  CHECK(Holds(pack(bad), "eps="));
  bad = good;
  bad.scale = -1.0f;
  CHECK(Holds(pack(bad), "scale="));
  bad = good;
  bad.activation = static_cast<Activation>(9);
  CHECK(Holds(pack(bad), "activation code 9"));
  EncoderBlockArgs args{};
  args.packed = c.packed.data();
  args.packed_bytes = c.packed.size();
  args.ldx = args.ldy = 32;
  const auto run = [&] { return ErrorOf([&] { tersor::EncoderBlock(args, tersor::SerialExecutor()); }); };
  CHECK(run().empty());  // nothing to do
  args.batch = 2;
  args.tokens = 3;
  CHECK(Holds(run(), "must not be null"));
  args.batch = -1;
  CHECK(Holds(run(), "batch=-1"));
  args.batch = int64_t{1} << 29;
  CHECK(Holds(run(), "at most 2^30"));
  args.batch = 1;
  args.ldx = 31;
  args.x = args.y = c.packed.data();
  CHECK(Holds(run(), "row strides"));
}
