#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace dlcore {

// Appends little-endian values.
class WireWriter {
 public:
  template <std::integral Int>
  void Put(Int value) {
    using Unsigned = std::make_unsigned_t<Int>;
    const auto bits = static_cast<Unsigned>(value);
    for (size_t i = 0; i < sizeof(Int); ++i) {
      bytes_.push_back(static_cast<std::byte>(bits >> (8 * i)));
    }
  }
  void PutBytes(std::span<const std::byte> bytes) {
    // Not insert(): GCC 12 sees an overflow in it under -fsanitize=thread.
    for (const std::byte b : bytes) bytes_.push_back(b);
  }
  [[nodiscard]] std::vector<std::byte> Take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

// Reads little-endian values. After the first read past the end every value is
// 0 and ok() is false, so a decoder may check once.
class WireReader {
 public:
  explicit WireReader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  template <std::integral Int>
  [[nodiscard]] Int Get() {
    using Unsigned = std::make_unsigned_t<Int>;
    const std::span<const std::byte> raw = GetBytes(sizeof(Int));
    Unsigned value = 0;
    for (size_t i = 0; i < raw.size(); ++i) {
      value = static_cast<Unsigned>(value | static_cast<Unsigned>(raw[i]) << (8 * i));
    }
    return static_cast<Int>(value);
  }
  // Empty when fewer than `count` bytes are left.
  [[nodiscard]] std::span<const std::byte> GetBytes(size_t count) {
    if (count > bytes_.size()) {
      ok_ = false;
      bytes_ = {};
      return {};
    }
    const auto result = bytes_.first(count);
    bytes_ = bytes_.subspan(count);
    return result;
  }
  template <size_t N>
  void GetArray(std::array<uint8_t, N>* out) {
    const auto raw = GetBytes(N);
    if (!raw.empty()) std::memcpy(out->data(), raw.data(), N);
  }
  [[nodiscard]] size_t left() const { return bytes_.size(); }
  [[nodiscard]] bool ok() const { return ok_; }
  [[nodiscard]] bool AtEnd() const { return ok_ && bytes_.empty(); }

 private:
  std::span<const std::byte> bytes_;
  bool ok_ = true;
};

}  // namespace dlcore
