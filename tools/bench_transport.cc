// Speed of KV migration between two processes, over any transport:
//   bench_transport TRANSPORT [OWNER_GPU READER_GPU]     e.g. tcp, shm, cuda_ipc 0 1
// Each line is one sequence of that many tokens of a Qwen3-8B-shaped cache
// (36 layers, 8 KV heads, 128 dims, 2 bytes): post to completed, and GB/s.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/check.h"
#include "transport/cuda_stream.h"
#include "transport/kv_migrator.h"
#include "transport/lease_table.h"
#include "transport/pool_memory.h"
#include "transport/registry.h"

namespace dlcore {
namespace {

constexpr char kKey[] = "a key for benchmarks only";
constexpr int32_t kLayers = 36;
constexpr int32_t kNumBlocks = 2048;  // 32k tokens, 4.8 GB over all layers
constexpr int kRounds = 5;

// A pool in host memory or on a GPU.
class BenchPool {
 public:
  explicit BenchPool(int32_t device, int32_t num_blocks) {
    layout_.groups = {{.block_size = 16,
                       .num_blocks = num_blocks,
                       .num_planes = 2,
                       .num_kv_heads = 8,
                       .bytes_per_head = 256}};
    const uint64_t layer_bytes = layout_.bytes_per_block(0) * static_cast<uint64_t>(num_blocks);
    if (device >= 0) {
      Check(NewCudaPoolMemory(device, &cuda_memory_));
      Check(CudaCopyStream::Create(device, &stream_));
    }
    for (int32_t i = 0; i < kLayers; ++i) layout_.layers.push_back({0, Allocate(layer_bytes)});
  }
  static void Check(const Status& status) {
    if (status.ok()) return;
    std::fprintf(stderr, "bench_transport: %s\n", status.message().c_str());
    std::exit(1);
  }
  [[nodiscard]] const KvLayout& layout() const { return layout_; }
  [[nodiscard]] PoolMemory* memory() const {
    return cuda_memory_ != nullptr ? cuda_memory_.get() : &HostPoolMemory();
  }

 private:
  uint64_t Allocate(uint64_t bytes) {
    if (stream_ == nullptr) {
      void* memory = std::aligned_alloc(4096, bytes);
      DLCORE_CHECK(memory != nullptr) << "out of memory";
      std::memset(memory, 1, bytes);
      return reinterpret_cast<uint64_t>(memory);
    }
    Check(stream_->Bind());
    CuAddress address = 0;
    Check(stream_->driver().Check(stream_->driver().MemAlloc(&address, bytes), "cuMemAlloc"));
    return address;
  }

  KvLayout layout_;
  std::unique_ptr<PoolMemory> cuda_memory_;
  std::unique_ptr<CudaCopyStream> stream_;
};

// A table whose neighbours come in pairs, in falling order: ranges of two blocks.
LeaseBlocks PairedBlocks(int32_t count) {
  LeaseBlocks blocks(1);
  for (int32_t i = 0; i < count; ++i) blocks[0].emplace_back((count / 2 - 1 - i / 2) * 2 + i % 2);
  return blocks;
}

struct Invitation {
  char endpoint[200] = {};
  LeaseRef leases[3][kRounds];
};
constexpr int32_t kTokens[3] = {1024, 8192, 32768};

[[noreturn]] void Serve(const std::string& transport, int32_t device, int32_t num_blocks, int fd) {
  BenchPool pool(device, num_blocks);
  LeaseTable leases(pool.layout(), {.ttl = std::chrono::minutes(10)},
                    [](LeaseRef, const LeaseBlocks&) {});
  TransportServerOptions options;
  options.key = kKey;
  options.leases = &leases;
  options.memory = pool.memory();
  std::unique_ptr<TransportServer> server;
  BenchPool::Check(NewTransportServer(transport, options, &server));
  Invitation invitation;
  server->endpoint().copy(invitation.endpoint, sizeof(invitation.endpoint) - 1);
  for (int t = 0; t < 3; ++t) {
    if (kTokens[t] > num_blocks * 16) continue;
    for (LeaseRef& lease : invitation.leases[t]) {
      BenchPool::Check(leases.Create(PairedBlocks(kTokens[t] / 16), kTokens[t], &lease));
      BenchPool::Check(leases.MarkLayersDone(lease, kLayers));
    }
  }
  if (write(fd, &invitation, sizeof(invitation)) != sizeof(invitation)) _exit(1);
  while (true) pause();
}

double Migrate(KvMigrator* migrator, const Invitation& invitation, int32_t tokens, LeaseRef lease,
               uint64_t* bytes) {
  MigrationRequest request;
  request.sources = {{invitation.endpoint, lease}};
  request.local_blocks = PairedBlocks(tokens / 16);
  request.num_tokens = tokens;
  request.timeout = std::chrono::minutes(2);
  const auto start = std::chrono::steady_clock::now();
  migrator->Post(std::move(request));
  std::vector<MigrationEvent> events;
  while (events.empty()) {
    std::this_thread::sleep_for(std::chrono::microseconds(50));
    migrator->PollCompleted(&events);
  }
  BenchPool::Check(events[0].status);
  *bytes = events[0].bytes;
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void Measure(const Invitation& invitation, int32_t device, int32_t num_blocks) {
  BenchPool pool(device, num_blocks);
  KvMigrator::Options options;
  options.layout = pool.layout();
  options.transport.key = kKey;
  options.transport.memory = pool.memory();
  KvMigrator migrator(std::move(options));
  std::printf("%-40s %8s %10s %8s %8s\n", "endpoint", "tokens", "MB", "best ms", "GB/s");
  for (int t = 0; t < 3; ++t) {
    if (kTokens[t] > num_blocks * 16) continue;
    double best = 1e9;
    uint64_t bytes = 0;
    for (const LeaseRef lease : invitation.leases[t]) {
      best = std::min(best, Migrate(&migrator, invitation, kTokens[t], lease, &bytes));
    }
    std::printf("%-40.40s %8d %10.1f %8.2f %8.2f\n", invitation.endpoint, kTokens[t],
                static_cast<double>(bytes) / 1e6, best * 1e3,
                static_cast<double>(bytes) / best / 1e9);
  }
}

int Main(int argc, char** argv) {
  if (argc != 2 && argc != 4) {
    std::fprintf(stderr, "usage: bench_transport TRANSPORT [OWNER_GPU READER_GPU]\n");
    return 2;
  }
  const bool on_gpu = argc == 4;
  const int32_t num_blocks = on_gpu ? kNumBlocks : kNumBlocks / 4;  // host: 1.2 GB a side
  int fds[2];
  if (pipe(fds) != 0) return 1;
  const pid_t owner = fork();  // before either side touches a driver
  if (owner == 0) Serve(argv[1], on_gpu ? std::atoi(argv[2]) : -1, num_blocks, fds[1]);
  close(fds[1]);
  Invitation invitation;
  const bool invited = read(fds[0], &invitation, sizeof(invitation)) == sizeof(invitation);
  if (invited) Measure(invitation, on_gpu ? std::atoi(argv[3]) : -1, num_blocks);
  kill(owner, SIGKILL);
  waitpid(owner, nullptr, 0);
  return invited ? 0 : 1;
}

}  // namespace
}  // namespace dlcore

int main(int argc, char** argv) { return dlcore::Main(argc, argv); }
