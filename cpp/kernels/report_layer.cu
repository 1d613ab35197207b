// After a layer of a prompt: the CPU learns that the layer's KV is written, while the step goes on.

#include "kernels/common.cuh"
#include "kernels/kernels.h"

namespace dlcore::kernels {
namespace {

constexpr int kStepSerial = 13;  // of step_layout.h's header

__global__ void ReportLayer(const int32_t* header, uint64_t* layer_word, uint32_t layers_done) {
  AllowNext();
  WaitForPrevious();
  const uint64_t serial = static_cast<uint32_t>(header[kStepSerial]);
  const uint64_t word = serial << 32 | layers_done;
  // Release: the waited-for kernels' writes reach whoever reads the word, on the CPU or in copies
  // the CPU then starts on other streams, before the word does.
  asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(layer_word), "l"(word) : "memory");
}

}  // namespace
}  // namespace dlcore::kernels

int dlk_report_layer(const int32_t* header, uint64_t* layer_word, int layers_done,
                     cudaStream_t stream) {
  using namespace dlcore::kernels;
  return Launch(ReportLayer, 1, 1, 0, stream, header, layer_word, layers_done);
}
