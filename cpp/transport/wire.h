#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/sha256.h"
#include "dlcore/status.h"
#include "dlcore/transport.h"
#include "transport/lease_table.h"

// The messages between a reader and an owner: little-endian, length-prefixed,
// every length bounded before anything is allocated or copied for it.
namespace dlcore {

enum class FrameType : uint8_t {
  kChallenge = 1,  // owner -> reader
  kHello = 2,      // reader -> owner
  kWelcome = 3,    // owner -> reader
  kOpenLease = 4,  // reader -> owner
  kLeaseInfo = 5,  // owner -> reader
  kRead = 6,       // reader -> owner
  kReadReply = 7,  // owner -> reader
  kRelease = 8,    // reader -> owner, no reply
  kCancel = 9,     // reader -> owner, no reply; names the request to cancel
};

inline constexpr uint32_t kFrameMagic = 0x564b4c44;  // "DLKV"
inline constexpr uint8_t kWireVersion = 2;
inline constexpr size_t kFrameHeaderBytes =
    20;  // magic u32, version u8, type u8, 0 u16, length u32, request u64
inline constexpr size_t kNonceBytes = 32;
inline constexpr size_t kMaxBlobBytes = 256;  // what a transport adds to the handshake
inline constexpr size_t kMaxRangesPerRead = 4096;
inline constexpr size_t kMaxMessageBytes = 200;     // text of a status
inline constexpr size_t kMaxInlineBytes = 1 << 20;  // payload of one ReadReply

using Nonce = std::array<uint8_t, kNonceBytes>;
using Blob = std::vector<std::byte>;

struct FrameHeader {
  FrameType type = FrameType::kChallenge;
  uint32_t length = 0;   // of the body
  uint64_t request = 0;  // chosen by the reader, echoed in the reply
};

// Longest body a frame of this type may have; 0 for a byte that names no type.
[[nodiscard]] size_t MaxBodyBytes(uint8_t type);
void EncodeHeader(const FrameHeader& header, std::vector<std::byte>* out);
// Empty when magic, version, type, padding or length is not acceptable.
[[nodiscard]] std::optional<FrameHeader> DecodeHeader(
    std::span<const std::byte, kFrameHeaderBytes> bytes);

struct ChallengeMessage {
  Nonce nonce{};
};
struct HelloMessage {
  Nonce nonce{};
  Sha256Digest mac{};
  Blob blob;
};
struct WelcomeMessage {
  Sha256Digest mac{};
  Blob blob;
};
struct OpenLeaseMessage {
  LeaseRef lease;
  LeaseProgress at_least;  // answer once so many tokens, or layers, are written
  uint32_t timeout_ms = 0;
};
struct LeaseInfoMessage {
  Status status;
  LeaseInfo info;
};
struct ReadMessage {
  LeaseRef lease;
  uint32_t layer = 0;
  uint32_t timeout_ms = 0;
  uint32_t slot = 0;               // of the reader's window; 0 where payload travels inline
  std::vector<LayerRange> ranges;  // lengths are u32 on the wire
};
struct ReadReplyMessage {
  Status status;
  std::span<const std::byte> payload;  // into the decoded body
};
struct ReleaseMessage {
  LeaseRef lease;
};

[[nodiscard]] Blob Encode(const ChallengeMessage& message);
[[nodiscard]] Blob Encode(const HelloMessage& message);
[[nodiscard]] Blob Encode(const WelcomeMessage& message);
[[nodiscard]] Blob Encode(const OpenLeaseMessage& message);
[[nodiscard]] Blob Encode(const LeaseInfoMessage& message);
[[nodiscard]] Blob Encode(const ReadMessage& message);
// The reply's fixed part; the payload is appended by whoever gathers it.
[[nodiscard]] Blob EncodeReadReply(const Status& status);
[[nodiscard]] Blob Encode(const ReleaseMessage& message);

// False when the body is not exactly one such message within its bounds.
[[nodiscard]] bool Decode(std::span<const std::byte> body, ChallengeMessage* out);
[[nodiscard]] bool Decode(std::span<const std::byte> body, HelloMessage* out);
[[nodiscard]] bool Decode(std::span<const std::byte> body, WelcomeMessage* out);
[[nodiscard]] bool Decode(std::span<const std::byte> body, OpenLeaseMessage* out);
[[nodiscard]] bool Decode(std::span<const std::byte> body, LeaseInfoMessage* out);
[[nodiscard]] bool Decode(std::span<const std::byte> body, ReadMessage* out);
[[nodiscard]] bool Decode(std::span<const std::byte> body, ReadReplyMessage* out);
[[nodiscard]] bool Decode(std::span<const std::byte> body, ReleaseMessage* out);

// Proof that a side holds the deployment's key: HMAC over its role, the
// transport's name, both nonces and the blob it sends.
enum class AuthRole : uint8_t { kReader, kOwner };
[[nodiscard]] Sha256Digest MakeProof(std::string_view key, AuthRole role,
                                     std::string_view transport, const Nonce& owner_nonce,
                                     const Nonce& reader_nonce, std::span<const std::byte> blob);
[[nodiscard]] Nonce RandomNonce();

}  // namespace dlcore
