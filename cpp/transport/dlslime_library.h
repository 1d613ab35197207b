#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "dlcore/status.h"
#include "transport/queue_pair_address.h"

// dlslime's RDMA engine (PyPI wheel `dlslime`), behind an interface of our own.
// Its headers and libraries are seen by one plugin only (plugin/dlslime_plugin.cc),
// which is loaded at run time: the core needs none of it, neither to build nor to run.
namespace dlcore {

inline constexpr uint32_t kDlslimePluginVersion = 1;
inline constexpr char kDlslimePluginFile[] = "libdlcore_dlslime.so";

// Memory a peer lets this side read.
struct RemoteMemory {
  uint64_t address = 0;
  uint64_t bytes = 0;
  uint32_t rkey = 0;
};

// A reliable connection with memory of its own, page aligned and zeroed. Both sides may
// read and write each other's memory once they know its address and key: dlslime has no
// narrower right. Destroying it ends every access.
// Thread safety: one thread.
class DlslimeEndpoint {
 public:
  virtual ~DlslimeEndpoint() = default;

  [[nodiscard]] virtual std::byte* memory() const = 0;
  [[nodiscard]] virtual uint32_t rkey() const = 0;
  [[nodiscard]] virtual const QueuePairAddress& address() const = 0;
  // REQUIRES: some other queue pair could be connected to `peer`. dlslime aborts the
  // process where the verbs refuse an address.
  virtual Status Connect(const QueuePairAddress& peer, const RemoteMemory& memory) = 0;
  // Starts to read peer memory [offset, offset + length) to the same place of memory().
  // `wake` is called once, from dlslime's thread, when the read has ended; not after
  // this object is destroyed.
  // REQUIRES: connected, and no read with this number is under way.
  virtual Status PostRead(uint32_t number, uint64_t offset, uint64_t length,
                          std::function<void()> wake) = 0;
  // Whether the last read of this number has ended; Unavailable when it failed.
  virtual Status PollRead(uint32_t number, bool* done) = 0;
};

// An opened RDMA device and the thread that polls its completions.
// Thread safety: any thread.
class DlslimeDevice {
 public:
  virtual ~DlslimeDevice() = default;
  // With `bytes` of memory and up to `num_reads` reads under way.
  virtual Status NewEndpoint(size_t bytes, uint32_t num_reads,
                             std::unique_ptr<DlslimeEndpoint>* out) = 0;
};

// What the plugin exports: `extern "C" const DlslimePlugin dlcore_dlslime_plugin`.
struct DlslimePlugin {
  uint32_t version = kDlslimePluginVersion;
  // Unavailable when the library that was loaded is not the one the plugin was built
  // with: dlslime promises no stable ABI.
  Status (*check)() = nullptr;
  // One device per name and process, opened by its first user and closed by its last.
  Status (*open)(const std::string& device, std::shared_ptr<DlslimeDevice>* out) = nullptr;
};

// Whether dlcore was built where the wheel was; Unavailable says how to.
Status CheckDlslimeBuilt();

// Unavailable where the plugin was not built, or the installed dlslime is not the one
// it was built with. Thread safety: any thread.
Status LoadDlslime(const DlslimePlugin** out);

}  // namespace dlcore
