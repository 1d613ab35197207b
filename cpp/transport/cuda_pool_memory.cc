#include <algorithm>
#include <cstring>
#include <mutex>
#include <utility>
#include <vector>

#include "base/log.h"
#include "transport/cuda_stream.h"
#include "transport/pool_memory.h"

namespace dlcore {
namespace {

constexpr uint64_t kStagingBytes = 1 << 20;

// Walks ranges piece by piece.
class RangeCursor {
 public:
  explicit RangeCursor(std::span<const MemoryRange> ranges) : ranges_(ranges) {}

  // Appends the next at most `room` bytes' ranges, each paired with host bytes
  // from `host` on; returns how many bytes those are, 0 at the end.
  uint64_t Take(uint64_t room, uint64_t host, bool to_host, std::vector<CudaCopy>* out) {
    uint64_t taken = 0;
    while (taken < room && next_ < ranges_.size()) {
      const MemoryRange& range = ranges_[next_];
      const uint64_t bytes = std::min(range.length - done_, room - taken);
      const uint64_t pool = range.address + done_;
      if (bytes > 0) {
        out->push_back(to_host ? CudaCopy{host + taken, pool, bytes}
                               : CudaCopy{pool, host + taken, bytes});
      }
      taken += bytes;
      done_ += bytes;
      if (done_ == range.length) {
        ++next_;
        done_ = 0;
      }
    }
    return taken;
  }

 private:
  std::span<const MemoryRange> ranges_;
  size_t next_ = 0;
  uint64_t done_ = 0;
};

// A stream with a staging buffer: what one copy at a time needs.
class Lane {
 public:
  static Status Create(int32_t device, std::unique_ptr<Lane>* out) {
    auto lane = std::make_unique<Lane>();
    if (Status s = CudaCopyStream::Create(device, &lane->stream_); !s.ok()) return s;
    const CudaDriver& cuda = lane->stream_->driver();
    const Status s =
        cuda.Check(cuda.MemHostAlloc(&lane->staging_, kStagingBytes, kCuMemHostAllocPortable),
                   "cuMemHostAlloc");
    if (s.ok()) *out = std::move(lane);
    return s;
  }
  Lane() = default;
  ~Lane() {
    if (staging_ != nullptr && stream_->Bind().ok()) stream_->driver().MemFreeHost(staging_);
  }
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  // `host`: an address in pinned memory.
  Status CopyPinned(std::span<const MemoryRange> pool, uint64_t host, bool to_host) {
    if (Status s = stream_->Bind(); !s.ok()) return s;
    copies_.clear();
    RangeCursor cursor(pool);
    cursor.Take(UINT64_MAX, host, to_host, &copies_);
    return RunCopies();
  }
  Status GatherStaged(std::span<const MemoryRange> from, std::byte* to) {
    if (Status s = stream_->Bind(); !s.ok()) return s;
    RangeCursor cursor(from);
    while (const uint64_t bytes = TakeStaged(&cursor, true)) {
      if (Status s = RunCopies(); !s.ok()) return s;
      std::memcpy(to, staging_, bytes);
      to += bytes;
    }
    return Status::Ok();
  }
  Status ScatterStaged(const std::byte* from, std::span<const MemoryRange> to) {
    if (Status s = stream_->Bind(); !s.ok()) return s;
    RangeCursor cursor(to);
    while (const uint64_t bytes = TakeStaged(&cursor, false)) {
      std::memcpy(staging_, from, bytes);
      if (Status s = RunCopies(); !s.ok()) return s;
      from += bytes;
    }
    return Status::Ok();
  }

 private:
  uint64_t TakeStaged(RangeCursor* cursor, bool to_host) {
    copies_.clear();
    return cursor->Take(kStagingBytes, reinterpret_cast<uint64_t>(staging_), to_host, &copies_);
  }
  Status RunCopies() {
    if (Status s = stream_->Copy(copies_); !s.ok()) return s;
    return stream_->Synchronize();
  }

  std::unique_ptr<CudaCopyStream> stream_;
  void* staging_ = nullptr;
  std::vector<CudaCopy> copies_;
};

class CudaPoolMemory final : public PoolMemory {
 public:
  CudaPoolMemory(int32_t device, std::unique_ptr<CudaCopyStream> stream)
      : device_(device), stream_(std::move(stream)) {}

  Status Gather(std::span<const MemoryRange> from, std::byte* to) override {
    return WithLane([&](Lane* lane) {
      return IsPinned(to, TotalBytes(from))
                 ? lane->CopyPinned(from, reinterpret_cast<uint64_t>(to), true)
                 : lane->GatherStaged(from, to);
    });
  }
  Status Scatter(const std::byte* from, std::span<const MemoryRange> to) override {
    return WithLane([&](Lane* lane) {
      return IsPinned(from, TotalBytes(to))
                 ? lane->CopyPinned(to, reinterpret_cast<uint64_t>(from), false)
                 : lane->ScatterStaged(from, to);
    });
  }
  [[nodiscard]] int32_t cuda_device() const override { return device_; }

  // Memory that cannot be pinned is staged: slower, never wrong.
  void Pin(std::span<std::byte> bytes) override {
    const std::lock_guard lock(mutex_);
    if (!stream_->Bind().ok()) return;
    const CudaDriver& cuda = stream_->driver();
    const Status s =
        cuda.Check(cuda.MemHostRegister(bytes.data(), bytes.size(), kCuMemHostRegisterPortable),
                   "cuMemHostRegister");
    if (s.ok()) {
      pinned_.push_back(bytes);
    } else {
      Log(LogLevel::kWarning, "a window is not pinned: " + s.message());
    }
  }
  void Unpin(std::span<std::byte> bytes) override {
    const std::lock_guard lock(mutex_);
    const auto it = std::ranges::find(pinned_, bytes.data(), &std::span<std::byte>::data);
    if (it == pinned_.end()) return;
    pinned_.erase(it);
    if (stream_->Bind().ok()) stream_->driver().MemHostUnregister(bytes.data());
  }

 private:
  template <class Function>
  Status WithLane(Function use) {
    std::unique_ptr<Lane> lane;
    {
      const std::lock_guard lock(mutex_);
      if (!idle_.empty()) {
        lane = std::move(idle_.back());
        idle_.pop_back();
      }
    }
    if (lane == nullptr) {
      if (Status s = Lane::Create(device_, &lane); !s.ok()) return s;
    }
    const Status status = use(lane.get());
    const std::lock_guard lock(mutex_);
    idle_.push_back(std::move(lane));
    return status;
  }
  [[nodiscard]] bool IsPinned(const std::byte* host, uint64_t bytes) {
    const std::lock_guard lock(mutex_);
    return std::ranges::any_of(pinned_, [&](std::span<std::byte> range) {
      return host >= range.data() && host + bytes <= range.data() + range.size();
    });
  }

  const int32_t device_;
  std::mutex mutex_;
  std::unique_ptr<CudaCopyStream> stream_;  // binds threads for pinning
  std::vector<std::unique_ptr<Lane>> idle_;
  std::vector<std::span<std::byte>> pinned_;
};

}  // namespace

Status NewCudaPoolMemory(int32_t device, std::unique_ptr<PoolMemory>* out) {
  std::unique_ptr<CudaCopyStream> stream;
  if (Status s = CudaCopyStream::Create(device, &stream); !s.ok()) return s;
  *out = std::make_unique<CudaPoolMemory>(device, std::move(stream));
  return Status::Ok();
}

}  // namespace dlcore
