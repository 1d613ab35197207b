#include "transport/copy_kernel.h"

#include <map>
#include <mutex>

namespace dlcore {
namespace {

constexpr char kName[] = "dlcore_copy_ranges";

// for (i = block; i < count; i += blocks) copy list[i] with all threads of the block:
// 16 bytes a thread where addresses and length allow, four loads under way; else by bytes.
constexpr char kPtx[] = R"(
.version 7.0
.target sm_70
.address_size 64

.visible .entry dlcore_copy_ranges(.param .u64 list_param, .param .u32 count_param)
{
  .reg .pred %p;
  .reg .b16 %byte;
  .reg .b32 %i, %count, %thread, %threads, %blocks;
  .reg .b32 %a<4>, %b<4>, %c<4>, %d<4>;
  .reg .b64 %list, %entry, %to, %from, %bytes, %at, %step, %step4, %last, %bits, %src, %dst;

  ld.param.u64 %list, [list_param];
  ld.param.u32 %count, [count_param];
  cvta.to.global.u64 %list, %list;
  mov.u32 %i, %ctaid.x;
  mov.u32 %blocks, %nctaid.x;
  mov.u32 %thread, %tid.x;
  mov.u32 %threads, %ntid.x;

NEXT_RANGE:
  setp.ge.u32 %p, %i, %count;
  @%p ret;
  mad.wide.u32 %entry, %i, 24, %list;
  ld.global.u64 %to, [%entry];
  ld.global.u64 %from, [%entry+8];
  ld.global.u64 %bytes, [%entry+16];
  add.u32 %i, %i, %blocks;
  cvt.u64.u32 %at, %thread;
  cvt.u64.u32 %step, %threads;
  or.b64 %bits, %to, %from;
  or.b64 %bits, %bits, %bytes;
  and.b64 %bits, %bits, 15;
  setp.ne.u64 %p, %bits, 0;
  @%p bra BY_BYTES;
  shl.b64 %at, %at, 4;
  shl.b64 %step, %step, 4;
  shl.b64 %step4, %step, 2;

FOUR_VECTORS:
  sub.u64 %last, %step4, %step;
  add.u64 %last, %last, %at;
  setp.ge.u64 %p, %last, %bytes;
  @%p bra ONE_VECTOR;
  add.u64 %src, %from, %at;
  add.u64 %dst, %to, %at;
  ld.global.v4.u32 {%a0, %a1, %a2, %a3}, [%src];
  add.u64 %src, %src, %step;
  ld.global.v4.u32 {%b0, %b1, %b2, %b3}, [%src];
  add.u64 %src, %src, %step;
  ld.global.v4.u32 {%c0, %c1, %c2, %c3}, [%src];
  add.u64 %src, %src, %step;
  ld.global.v4.u32 {%d0, %d1, %d2, %d3}, [%src];
  st.global.v4.u32 [%dst], {%a0, %a1, %a2, %a3};
  add.u64 %dst, %dst, %step;
  st.global.v4.u32 [%dst], {%b0, %b1, %b2, %b3};
  add.u64 %dst, %dst, %step;
  st.global.v4.u32 [%dst], {%c0, %c1, %c2, %c3};
  add.u64 %dst, %dst, %step;
  st.global.v4.u32 [%dst], {%d0, %d1, %d2, %d3};
  add.u64 %at, %at, %step4;
  bra FOUR_VECTORS;

ONE_VECTOR:
  setp.ge.u64 %p, %at, %bytes;
  @%p bra NEXT_RANGE;
  add.u64 %src, %from, %at;
  add.u64 %dst, %to, %at;
  ld.global.v4.u32 {%a0, %a1, %a2, %a3}, [%src];
  st.global.v4.u32 [%dst], {%a0, %a1, %a2, %a3};
  add.u64 %at, %at, %step;
  bra ONE_VECTOR;

BY_BYTES:
  setp.ge.u64 %p, %at, %bytes;
  @%p bra NEXT_RANGE;
  add.u64 %src, %from, %at;
  add.u64 %dst, %to, %at;
  ld.global.u8 %byte, [%src];
  st.global.u8 [%dst], %byte;
  add.u64 %at, %at, %step;
  bra BY_BYTES;
}
)";

}  // namespace

Status LoadCopyKernel(const CudaDriver& driver, CuDeviceHandle device, CuFunction* out) {
  static std::mutex mutex;
  static std::map<CuDeviceHandle, CuFunction> loaded;
  const std::lock_guard lock(mutex);
  if (const auto it = loaded.find(device); it != loaded.end()) {
    *out = it->second;
    return Status::Ok();
  }
  CuContext context = nullptr;  // never released: the module lives in it
  CuModule module = nullptr;
  Status s = driver.Check(driver.PrimaryCtxRetain(&context, device), "cuDevicePrimaryCtxRetain");
  if (s.ok()) s = driver.Check(driver.ModuleLoadData(&module, kPtx), "cuModuleLoadData");
  if (s.ok()) s = driver.Check(driver.ModuleGetFunction(out, module, kName), "cuModuleGetFunction");
  if (s.ok()) loaded[device] = *out;
  return s;
}

}  // namespace dlcore
