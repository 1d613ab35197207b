#pragma once

#include <array>
#include <charconv>
#include <concepts>
#include <string>
#include <string_view>

namespace dlcore {

// Builds a line of text with <<. Unlike std::ostringstream it needs no locale: an extension that
// carries its own C++ library beside another one's (torch's) cannot rely on theirs.
class Text {
 public:
  Text& operator<<(std::string_view s) {
    text_ += s;
    return *this;
  }
  template <class Number>
  requires std::integral<Number> || std::floating_point<Number> Text& operator<<(Number value) {
    std::array<char, 32> digits{};
    const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), value).ptr;
    text_.append(digits.data(), end);
    return *this;
  }
  [[nodiscard]] const std::string& str() const { return text_; }

 private:
  std::string text_;
};

}  // namespace dlcore
