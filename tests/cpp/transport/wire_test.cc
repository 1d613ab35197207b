#include "transport/wire.h"

#include <random>

#include <gtest/gtest.h>

#include "tests/cpp/transport/transport_harness.h"
#include "transport/copy_plan.h"

// What peers say is bytes until it is decoded. The law: bytes that decode are
// exactly what the message they make encodes to, and stay within its bounds.
namespace dlcore::testing_harness {
namespace {

constexpr int kMutations = 100'000;

Nonce SomeNonce() {
  Nonce nonce;
  nonce.fill(7);
  return nonce;
}

LeaseInfoMessage SomeLeaseInfo() {
  LeaseInfoMessage message;
  message.info = {MixedLayout(32), Tables({1, 2, 31}, {4, 5}), 40, {3, 2}};
  return message;
}

ReadMessage SomeRead() { return {{5, 6}, 2, 1000, 1, {{0, 64}, {4096, 128}, {1 << 20, 1}}}; }

// A few bytes changed, put in, cut out or cut off.
Blob Mutated(Blob bytes, std::mt19937_64* engine) {
  std::mt19937_64& random = *engine;
  for (uint64_t n = 1 + random() % 4; n > 0 && !bytes.empty(); --n) {
    const auto at = bytes.begin() + static_cast<ptrdiff_t>(random() % bytes.size());
    switch (random() % 8) {
      case 0:
        bytes.insert(at, static_cast<std::byte>(random()));
        break;
      case 1:
        bytes.erase(at);
        break;
      case 2:
        bytes.erase(at, bytes.end());
        break;
      default:
        *at = static_cast<std::byte>(random() % 3 == 0 ? 0xff : random());
        break;
    }
  }
  return bytes;
}

// Returns how many mutations of `message` decoded; each must encode to itself.
template <typename Message>
int CheckMutations(const Message& message, uint64_t seed) {
  std::mt19937_64 engine(seed);
  const Blob valid = Encode(message);
  int decoded = 0;
  for (int i = 0; i < kMutations; ++i) {
    const Blob bytes = Mutated(valid, &engine);
    Message out;
    if (!Decode(bytes, &out)) continue;
    ++decoded;
    EXPECT_EQ(Encode(out), bytes);
  }
  return decoded;
}

TEST(Wire, WhatDecodesEncodesToTheSameBytes) {
  EXPECT_GT(CheckMutations(ChallengeMessage{SomeNonce()}, 1), 0);
  EXPECT_GT(CheckMutations(HelloMessage{SomeNonce(), {}, Blob(20)}, 2), 0);
  EXPECT_GT(CheckMutations(WelcomeMessage{{}, Blob(20)}, 3), 0);
  EXPECT_GT(CheckMutations(OpenLeaseMessage{{5, 6}, {16, 2}, 1000}, 4), 0);
  EXPECT_GT(CheckMutations(SomeLeaseInfo(), 5), 0);
  EXPECT_GT(CheckMutations(SomeRead(), 6), 0);
  EXPECT_GT(CheckMutations(ReleaseMessage{{5, 6}}, 7), 0);
}

// A reader takes an owner's word for the owner's pool, never for its own.
TEST(Wire, NoLeaseInfoMakesAPlanThatLeavesTheLocalBlocks) {
  std::mt19937_64 engine(8);
  const Blob valid = Encode(SomeLeaseInfo());
  const KvLayout local = MixedLayout(16);
  const LeaseBlocks blocks = Tables({3, 7, 9}, {2, 8});
  int planned = 0;
  for (int i = 0; i < kMutations; ++i) {
    LeaseInfoMessage message;
    if (!Decode(Mutated(valid, &engine), &message) || !message.status.ok()) continue;
    const KvLayout& remote = message.info.layout;
    for (int32_t g = 0; g < 2 && g < static_cast<int32_t>(remote.groups.size()); ++g) {
      const auto group = static_cast<size_t>(g);
      const CopySpec spec{g, message.info.blocks[group], blocks[group], 0, g == 0 ? 40 : 8};
      std::vector<CopyRange> ranges;
      if (!BuildCopyPlan(remote, local, spec, &ranges).ok()) continue;
      ++planned;
      for (const CopyRange& range : ranges) {
        const uint64_t size = local.bytes_per_block(g);
        const auto block = static_cast<int32_t>(range.local_offset / size);
        const uint64_t last = (range.local_offset + range.length - 1) / size;
        EXPECT_TRUE(std::ranges::find(blocks[group], BlockId(block)) != blocks[group].end());
        EXPECT_TRUE(std::ranges::find(blocks[group], BlockId(static_cast<int32_t>(last))) !=
                    blocks[group].end());
        EXPECT_LE(range.remote_offset + range.length,
                  remote.bytes_per_block(g) * remote.groups[group].num_blocks);
      }
    }
  }
  EXPECT_GT(planned, 0);
}

TEST(Wire, HeadersOfAnyBytesNameBoundedBodies) {
  std::mt19937_64 engine(9);
  Blob valid;
  EncodeHeader({FrameType::kRead, 100, 7}, &valid);
  int decoded = 0;
  for (int i = 0; i < kMutations; ++i) {
    Blob bytes = Mutated(valid, &engine);
    bytes.resize(kFrameHeaderBytes);
    const auto header = DecodeHeader(std::span<const std::byte, kFrameHeaderBytes>(bytes));
    if (!header.has_value()) continue;
    ++decoded;
    EXPECT_LE(header->length, MaxBodyBytes(static_cast<uint8_t>(header->type)));
    Blob back;
    EncodeHeader(*header, &back);
    EXPECT_EQ(back, bytes);
  }
  EXPECT_GT(decoded, 0);
}

}  // namespace
}  // namespace dlcore::testing_harness
