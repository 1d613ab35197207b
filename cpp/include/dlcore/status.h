#pragma once

#include <cstdint>
#include <string>
#include <utility>

namespace dlcore {

enum class StatusCode : uint8_t {
  kOk,
  kInvalidArgument,    // the caller's value is wrong; the message names the field and the fix
  kResourceExhausted,  // no block, slot or queue place now; may succeed later
  kNotFound,
  kUnavailable,  // stopped, stalled, or a peer is gone
  kDeadlineExceeded,
  kPermissionDenied,
  kInternal,  // a driver call failed or a launch was refused
};

// What an expected failure looks like. Bugs of ours are DLCORE_CHECK, never a Status.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  static Status Ok() { return {}; }
  static Status InvalidArgument(std::string m) {
    return {StatusCode::kInvalidArgument, std::move(m)};
  }
  static Status ResourceExhausted(std::string m) {
    return {StatusCode::kResourceExhausted, std::move(m)};
  }
  static Status NotFound(std::string m) { return {StatusCode::kNotFound, std::move(m)}; }
  static Status Unavailable(std::string m) { return {StatusCode::kUnavailable, std::move(m)}; }
  static Status DeadlineExceeded(std::string m) {
    return {StatusCode::kDeadlineExceeded, std::move(m)};
  }
  static Status PermissionDenied(std::string m) {
    return {StatusCode::kPermissionDenied, std::move(m)};
  }
  static Status Internal(std::string m) { return {StatusCode::kInternal, std::move(m)}; }

  [[nodiscard]] bool ok() const { return code_ == StatusCode::kOk; }
  [[nodiscard]] StatusCode code() const { return code_; }
  [[nodiscard]] const std::string& message() const { return message_; }

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

}  // namespace dlcore
