#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace dlcore {

using Sha256Digest = std::array<uint8_t, 32>;

// SHA-256 (FIPS 180-4), fed in pieces of any size.
class Sha256 {
 public:
  Sha256();
  void Update(std::span<const std::byte> data);
  void Update(std::string_view data) { Update(std::as_bytes(std::span(data))); }
  // Ends the message. The object may not be used afterwards.
  [[nodiscard]] Sha256Digest Finish();

 private:
  void Compress(const uint8_t* block);  // 64 bytes

  std::array<uint32_t, 8> state_;
  std::array<uint8_t, 64> buffer_{};
  size_t buffered_ = 0;
  uint64_t total_ = 0;
};

// HMAC-SHA256 (RFC 2104), fed in pieces.
class HmacSha256 {
 public:
  explicit HmacSha256(std::string_view key);
  void Update(std::span<const std::byte> data) { inner_.Update(data); }
  void Update(std::string_view data) { inner_.Update(data); }
  [[nodiscard]] Sha256Digest Finish();

 private:
  Sha256 inner_;
  Sha256 outer_;
};

// True when the two are equal; takes the same time wherever they differ.
[[nodiscard]] bool EqualInConstantTime(std::span<const uint8_t> a, std::span<const uint8_t> b);

}  // namespace dlcore
