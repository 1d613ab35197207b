#include "graph/cuda_graph_executable.h"

#include <string>
#include <utility>
#include <vector>

#include "device/cuda_driver.h"

namespace dlcore {
namespace {

class CudaGraphExecutable final : public Executable {
 public:
  CudaGraphExecutable(const CudaDriver& cuda, std::vector<CuGraphExec> graphs)
      : cuda_(cuda), graphs_(std::move(graphs)) {}

  Status Launch(const StepKey& /*key*/, Stream& stream) override {
    for (CuGraphExec graph : graphs_) {
      const CuResult result = cuda_.GraphLaunch(graph, static_cast<CuStream>(stream.handle()));
      if (result != kCuSuccess) return cuda_.Check(result, "cuGraphLaunch");
    }
    return {};
  }

 private:
  const CudaDriver& cuda_;
  std::vector<CuGraphExec> graphs_;
};

}  // namespace

Status NewCudaGraphExecutable(std::span<const uint64_t> graph_execs,
                              std::unique_ptr<Executable>* out) {
  if (graph_execs.empty()) return Status::InvalidArgument("graph_execs: at least one is needed");
  std::vector<CuGraphExec> graphs;
  for (size_t i = 0; i < graph_execs.size(); ++i) {
    if (graph_execs[i] == 0) {
      return Status::InvalidArgument("graph_execs[" + std::to_string(i) + "] is a null handle");
    }
    graphs.push_back(reinterpret_cast<CuGraphExec>(graph_execs[i]));
  }
  const CudaDriver* cuda = nullptr;
  if (Status status = LoadCudaDriver(&cuda); !status.ok()) return status;
  *out = std::make_unique<CudaGraphExecutable>(*cuda, std::move(graphs));
  return {};
}

}  // namespace dlcore
