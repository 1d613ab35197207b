// Speed of KV migration between two processes, over any transport:
//   bench_transport --transport tcp|shm|rdma|cuda_ipc [--devices OWNER_GPU,READER_GPU]
// Each line is one sequence of that many tokens of a Qwen3-8B-shaped cache
// (36 layers, 8 KV heads, 128 dims, 2 bytes a value, 147,456 bytes a token): the
// best of some rounds from post to completed, and GB/s. `blocks` says how the
// sequence lies in the two pools: in one run, in pairs, each for itself, or each
// for itself with other block sizes on the two sides. What arrived is compared.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <signal.h>
#include <sys/socket.h>
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
constexpr int32_t kHeads = 8;
constexpr int32_t kBytesPerHead = 256;
constexpr int32_t kBlockSize = 16;
constexpr int kRounds = 5;
constexpr double kEnoughSeconds = 2;

struct Case {
  const char* blocks;
  int32_t tokens;             // 0 = all the pool holds
  int32_t run;                // blocks that follow each other, 0 = all
  int32_t reader_block_size;  // the owner's is kBlockSize
};
constexpr std::array<Case, 6> kCases = {{{"pairs", 1024, 2, 16},
                                         {"pairs", 0, 2, 16},
                                         {"one run", 0, 0, 16},
                                         {"single", 0, 1, 16},
                                         {"single, 16 -> 32 tokens", 0, 1, 32},
                                         {"single, 16 -> 8 tokens", 0, 1, 8}}};

void Check(const Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "bench_transport: %s\n", status.message().c_str());
  std::exit(1);
}

// What the owner's cache holds at (layer, token, plane and head): one value a
// byte, so that a byte in the wrong place is seen.
uint8_t Content(int32_t layer, int32_t token, int32_t plane_head) {
  return static_cast<uint8_t>((layer * 131 + token * 7 + plane_head * 29) % 251 + 1);
}

// A pool in host memory or on a GPU.
class BenchPool {
 public:
  BenchPool(int32_t device, int32_t num_tokens) : num_tokens_(num_tokens) {
    if (device >= 0) {
      Check(NewCudaPoolMemory(device, &cuda_memory_));
      Check(CudaCopyStream::Create(device, &stream_));
    }
    const uint64_t layer_bytes = uint64_t{2} * kHeads * kBytesPerHead * uint64_t(num_tokens);
    for (int32_t i = 0; i < kLayers; ++i) bases_.push_back(Allocate(layer_bytes));
  }
  // The pool cut into blocks of so many tokens.
  [[nodiscard]] KvLayout Layout(int32_t block_size) const {
    KvLayout layout;
    layout.groups = {{.block_size = block_size,
                      .num_blocks = num_tokens_ / block_size,
                      .num_planes = 2,
                      .num_kv_heads = kHeads,
                      .bytes_per_head = kBytesPerHead}};
    for (const uint64_t base : bases_) layout.layers.push_back({0, base});
    return layout;
  }
  [[nodiscard]] int32_t num_tokens() const { return num_tokens_; }
  [[nodiscard]] PoolMemory* memory() const {
    return cuda_memory_ != nullptr ? cuda_memory_.get() : &HostPoolMemory();
  }
  // Writes, or compares, one block of a layer that holds tokens from `token` on.
  void Fill(int32_t layer, BlockId block, int32_t block_size, int32_t token) {
    const auto wanted = Wanted(layer, block_size, token);
    const MemoryRange range = Range(layer, block, wanted.size());
    Check(memory()->Scatter(wanted.data(), std::span(&range, 1)));
  }
  void Compare(int32_t layer, BlockId block, int32_t block_size, int32_t token) {
    const auto wanted = Wanted(layer, block_size, token);
    std::vector<std::byte> found(wanted.size());
    const MemoryRange range = Range(layer, block, wanted.size());
    Check(memory()->Gather(std::span(&range, 1), found.data()));
    if (found != wanted) Check(Status::Internal("other bytes arrived than were sent"));
  }

 private:
  [[nodiscard]] MemoryRange Range(int32_t layer, BlockId block, size_t bytes) const {
    return {bases_[static_cast<size_t>(layer)] + static_cast<uint64_t>(block.value) * bytes, bytes};
  }
  static std::vector<std::byte> Wanted(int32_t layer, int32_t block_size, int32_t token) {
    std::vector<std::byte> bytes;
    for (int32_t plane_head = 0; plane_head < 2 * kHeads; ++plane_head) {
      for (int32_t t = token; t < token + block_size; ++t) {
        bytes.insert(bytes.end(), kBytesPerHead, std::byte{Content(layer, t, plane_head)});
      }
    }
    return bytes;
  }
  uint64_t Allocate(uint64_t bytes) {
    if (stream_ == nullptr) {
      void* memory = std::aligned_alloc(4096, bytes);
      DLCORE_CHECK(memory != nullptr) << "out of memory";
      std::memset(memory, 0, bytes);
      return reinterpret_cast<uint64_t>(memory);
    }
    Check(stream_->Bind());
    CuAddress address = 0;
    Check(stream_->driver().Check(stream_->driver().MemAlloc(&address, bytes), "cuMemAlloc"));
    return address;
  }

  const int32_t num_tokens_;
  std::vector<uint64_t> bases_;
  std::unique_ptr<PoolMemory> cuda_memory_;
  std::unique_ptr<CudaCopyStream> stream_;
};

// A table of `count` blocks in runs of `run`, which lie in random order.
LeaseBlocks Table(int32_t count, int32_t run, uint64_t seed) {
  if (run == 0) run = count;
  std::vector<int32_t> runs(static_cast<size_t>(count / run));
  std::iota(runs.begin(), runs.end(), 0);
  std::shuffle(runs.begin(), runs.end(), std::mt19937_64(seed));
  LeaseBlocks blocks(1);
  for (const int32_t first : runs) {
    for (int32_t i = 0; i < run; ++i) blocks[0].emplace_back(first * run + i);
  }
  return blocks;
}

int32_t Tokens(const Case& c, int32_t num_tokens) { return c.tokens > 0 ? c.tokens : num_tokens; }

struct Invitation {
  char endpoint[200] = {};
  LeaseRef leases[kCases.size()];
};

[[noreturn]] void Serve(const std::string& transport, int32_t device, int32_t num_tokens, int fd) {
  BenchPool pool(device, num_tokens);
  LeaseTable leases(pool.Layout(kBlockSize), {.ttl = std::chrono::minutes(10)},
                    [](LeaseRef, const LeaseBlocks&) {});
  TransportServerOptions options;
  options.key = kKey;
  options.leases = &leases;
  options.memory = pool.memory();
  std::unique_ptr<TransportServer> server;
  Check(NewTransportServer(transport, options, &server));
  Invitation invitation;
  server->endpoint().copy(invitation.endpoint, sizeof(invitation.endpoint) - 1);
  for (size_t i = 0; i < kCases.size(); ++i) {
    const int32_t tokens = Tokens(kCases[i], num_tokens);
    const LeaseBlocks table = Table(tokens / kBlockSize, kCases[i].run, i);
    Check(leases.Create(table, tokens, &invitation.leases[i]));
    Check(leases.MarkLayersDone(invitation.leases[i], kLayers));
  }
  if (write(fd, &invitation, sizeof(invitation)) != sizeof(invitation)) _exit(1);
  // From here on the reader says which case's content it wants to see.
  size_t wanted = 0;
  while (read(fd, &wanted, sizeof(wanted)) == sizeof(wanted)) {
    const Case& c = kCases[wanted];
    const LeaseBlocks table = Table(Tokens(c, num_tokens) / kBlockSize, c.run, wanted);
    for (size_t b = 0; b < table[0].size(); ++b) {
      const int32_t token = static_cast<int32_t>(b) * kBlockSize;
      for (const int32_t layer : {0, kLayers - 1}) {
        pool.Fill(layer, table[0][b], kBlockSize, token);
      }
    }
    if (write(fd, &wanted, sizeof(wanted)) != sizeof(wanted)) break;
  }
  _exit(0);
}

double Migrate(KvMigrator* migrator, const std::string& endpoint, LeaseRef lease,
               const LeaseBlocks& local, int32_t tokens, uint64_t* bytes) {
  MigrationRequest request;
  request.sources = {{endpoint, lease}};
  request.local_blocks = local;
  request.num_tokens = tokens;
  request.release_when_done = false;
  request.timeout = std::chrono::minutes(2);
  const auto start = std::chrono::steady_clock::now();
  migrator->Post(std::move(request));
  std::vector<MigrationEvent> events;
  while (events.empty()) {
    std::this_thread::sleep_for(std::chrono::microseconds(50));
    migrator->PollCompleted(&events);
  }
  Check(events[0].status);
  *bytes = events[0].bytes;
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void MeasureCase(const Invitation& invitation, size_t index, BenchPool* pool) {
  const Case& c = kCases[index];
  const int32_t tokens = Tokens(c, pool->num_tokens());
  KvMigrator::Options options;
  options.layout = pool->Layout(c.reader_block_size);
  options.transport.key = kKey;
  options.transport.memory = pool->memory();
  KvMigrator migrator(std::move(options));
  const LeaseBlocks local = Table(tokens / c.reader_block_size, c.run, index + 100);
  double best = 1e9;
  uint64_t bytes = 0;
  double spent = 0;
  for (int round = 0; round < kRounds && spent < kEnoughSeconds; ++round) {
    best = std::min(best, Migrate(&migrator, invitation.endpoint, invitation.leases[index], local,
                                  tokens, &bytes));
    spent += best;
  }
  for (size_t b = 0; b < local[0].size(); ++b) {
    const int32_t token = static_cast<int32_t>(b) * c.reader_block_size;
    for (const int32_t layer : {0, kLayers - 1}) {
      pool->Compare(layer, local[0][b], c.reader_block_size, token);
    }
  }
  const std::string_view endpoint = invitation.endpoint;
  std::printf("%-9.*s %-24s %7d %9.1f %9.2f %8.2f\n",
              static_cast<int>(endpoint.substr(0, endpoint.find(':')).size()), endpoint.data(),
              c.blocks, tokens, static_cast<double>(bytes) / 1e6, best * 1e3,
              static_cast<double>(bytes) / best / 1e9);
}

void Measure(const Invitation& invitation, int32_t device, int32_t num_tokens, int fd) {
  BenchPool pool(device, num_tokens);
  std::printf("%-9s %-24s %7s %9s %9s %8s\n", "transport", "blocks", "tokens", "MB", "best ms",
              "GB/s");
  for (size_t i = 0; i < kCases.size(); ++i) {
    size_t filled = i;
    const bool ready = write(fd, &i, sizeof(i)) == sizeof(i) &&
                       read(fd, &filled, sizeof(filled)) == sizeof(filled);
    if (!ready) Check(Status::Unavailable("the owner's process is gone"));
    MeasureCase(invitation, i, &pool);
    std::fflush(stdout);
  }
}

int Usage() {
  std::fprintf(stderr,
               "usage: bench_transport --transport NAME [--devices OWNER_GPU,READER_GPU]\n");
  return 2;
}

int Main(int argc, char** argv) {
  std::string transport;
  int devices[2] = {-1, -1};
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string_view flag = argv[i];
    if (flag == "--transport") {
      transport = argv[i + 1];
    } else if (flag != "--devices" ||
               std::sscanf(argv[i + 1], "%d,%d", &devices[0], &devices[1]) != 2) {
      return Usage();
    }
  }
  if (transport.empty() || argc % 2 == 0) return Usage();
  const int32_t num_tokens = devices[0] >= 0 ? 32768 : 8192;  // host: 1.2 GB a side
  int fds[2];
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) != 0) return 1;
  const pid_t owner = fork();  // before either side touches a driver
  if (owner == 0) {
    close(fds[0]);
    Serve(transport, devices[0], num_tokens, fds[1]);
  }
  close(fds[1]);
  Invitation invitation;
  const bool invited = read(fds[0], &invitation, sizeof(invitation)) == sizeof(invitation);
  if (invited) Measure(invitation, devices[1], num_tokens, fds[0]);
  close(fds[0]);
  kill(owner, SIGKILL);
  waitpid(owner, nullptr, 0);
  return invited ? 0 : 1;
}

}  // namespace
}  // namespace dlcore

int main(int argc, char** argv) { return dlcore::Main(argc, argv); }
