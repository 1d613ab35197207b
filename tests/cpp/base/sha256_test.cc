#include "base/sha256.h"

#include <string>

#include "gtest/gtest.h"

namespace dlcore {
namespace {

std::string Hex(const Sha256Digest& digest) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const uint8_t byte : digest) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

std::string Hash(std::string_view message) {
  Sha256 hash;
  hash.Update(message);
  return Hex(hash.Finish());
}

std::string Mac(std::string_view key, std::string_view message) {
  HmacSha256 mac(key);
  mac.Update(message);
  return Hex(mac.Finish());
}

TEST(Sha256, MatchesFips180Vectors) {
  EXPECT_EQ(Hash(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(Hash("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(Hash("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(Hash(std::string(1'000'000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256, DoesNotDependOnHowTheMessageIsCut) {
  const std::string message(300, 'x');
  for (size_t cut = 0; cut <= message.size(); ++cut) {
    Sha256 hash;
    hash.Update(std::string_view(message).substr(0, cut));
    hash.Update(std::string_view(message).substr(cut));
    EXPECT_EQ(Hex(hash.Finish()), Hash(message));
  }
}

TEST(HmacSha256, MatchesRfc4231Vectors) {
  EXPECT_EQ(Mac(std::string(20, '\x0b'), "Hi There"),
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
  EXPECT_EQ(Mac("Jefe", "what do ya want for nothing?"),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
  EXPECT_EQ(Mac(std::string(131, '\xaa'), "Test Using Larger Than Block-Size Key - Hash Key First"),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
}

TEST(EqualInConstantTime, ComparesLengthAndContent) {
  const uint8_t a[] = {1, 2, 3};
  const uint8_t b[] = {1, 2, 4};
  EXPECT_TRUE(EqualInConstantTime(a, a));
  EXPECT_FALSE(EqualInConstantTime(a, b));
  EXPECT_FALSE(EqualInConstantTime(a, std::span(a).first(2)));
}

}  // namespace
}  // namespace dlcore
