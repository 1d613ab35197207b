#pragma once

#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "base/check.h"
#include "device/cuda_driver.h"
#include "transport/cuda_stream.h"
#include "transport/pool_memory.h"

// Where tests keep pools. With GPUs, pools are what a GPU's copies move and lie
// in pinned memory, which a test can look into as well; the owner's side uses the
// first GPU, the reader's the last. Without, both are plain host memory.
namespace dlcore::testing_harness {

inline int NumGpus() {
  static const int count = [] {
    const CudaDriver* cuda = nullptr;
    int found = 0;
    const bool usable = LoadCudaDriver(&cuda).ok() && cuda->DeviceGetCount(&found) == kCuSuccess;
    return usable ? found : 0;
  }();
  return count;
}

enum class Side : uint8_t { kOwner, kReader };

inline PoolMemory& MemoryOf(Side side) {
  if (NumGpus() == 0) return HostPoolMemory();
  static const std::vector<std::unique_ptr<PoolMemory>> memories = [] {
    std::vector<std::unique_ptr<PoolMemory>> made(static_cast<size_t>(NumGpus()));
    for (int i = 0; i < NumGpus(); ++i) {
      const Status s = NewCudaPoolMemory(i, &made[static_cast<size_t>(i)]);
      DLCORE_CHECK(s.ok()) << s.message();
    }
    return made;
  }();
  return side == Side::kOwner ? *memories.front() : *memories.back();
}

template <class T>
struct PinnedAllocator {
  using value_type = T;

  PinnedAllocator() = default;
  template <class U>
  explicit PinnedAllocator(const PinnedAllocator<U>&) {}

  T* allocate(size_t count) {
    if (NumGpus() == 0) return static_cast<T*>(::operator new(count * sizeof(T)));
    void* memory = nullptr;
    const CuResult result =
        Driver().MemHostAlloc(&memory, count * sizeof(T), kCuMemHostAllocPortable);
    if (result != kCuSuccess) throw std::bad_alloc();
    return static_cast<T*>(memory);
  }
  void deallocate(T* memory, size_t) {
    if (NumGpus() == 0) {
      ::operator delete(memory);
    } else {
      Driver().MemFreeHost(memory);
    }
  }
  friend bool operator==(const PinnedAllocator&, const PinnedAllocator&) { return true; }

 private:
  // With the first GPU's context bound to this thread.
  static const CudaDriver& Driver() {
    static const std::unique_ptr<CudaCopyStream> stream = [] {
      std::unique_ptr<CudaCopyStream> made;
      DLCORE_CHECK(CudaCopyStream::Create(0, &made).ok());
      return made;
    }();
    DLCORE_CHECK(stream->Bind().ok());
    return stream->driver();
  }
};

// Memory both the test and its transport can reach.
using Bytes = std::vector<uint8_t, PinnedAllocator<uint8_t>>;

}  // namespace dlcore::testing_harness
