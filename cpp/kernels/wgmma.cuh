#pragma once

#include "kernels/common.cuh"

// Hopper's warpgroup products, 64 x 128 x 16 in bf16 with float32 sums. In lane (g, t) of warp w of
// the warpgroup, d[4 j + 0, 1] = (16 w + g, 8 j + 2 t ..), d[4 j + 2, 3] = (16 w + g + 8, ...).
//
// Operands in shared memory are columns of 64 values (128 bytes), each row of a column 128 bytes
// after the one before and its 16-byte chunks swizzled by the row: chunk c of row r lies at c ^ r
// % 8.

namespace dlcore::kernels {

// Rows are the operand's outer dimension, columns its k: Q and K in Q K^T. A step of 16 along k is
// 32 bytes; `column_bytes` lie between columns.
__device__ __forceinline__ uint64_t DescriptorKMajor(uint32_t address) {
  constexpr uint64_t kSwizzle128 = 1ull << 62, kGroupOf8Rows = 1024 >> 4;
  return kSwizzle128 | kGroupOf8Rows << 32 | 1ull << 16 | (address & 0x3ffff) >> 4;
}
// Rows are k, columns the outer dimension: V in P V. A step of 16 along k is 2048 bytes.
__device__ __forceinline__ uint64_t DescriptorMnMajor(uint32_t address, uint32_t column_bytes) {
  constexpr uint64_t kSwizzle128 = 1ull << 62, kGroupOf8Rows = 1024 >> 4;
  return kSwizzle128 | kGroupOf8Rows << 32 | static_cast<uint64_t>(column_bytes >> 4) << 16 |
         (address & 0x3ffff) >> 4;
}

// Of what lies `bytes` further.
__device__ __forceinline__ uint64_t Advance(uint64_t descriptor, uint32_t bytes) {
  const uint32_t low = static_cast<uint32_t>(descriptor) + (bytes >> 4);
  return descriptor >> 32 << 32 | low;
}

__device__ __forceinline__ void WgmmaFence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void WgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// What the instructions' lists of sums look like: their names, and the registers themselves.
#define DLK_NAMES_16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define DLK_NAMES_32 DLK_NAMES_16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define DLK_NAMES_64                                                 \
  DLK_NAMES_32                                                       \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47" \
  ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define DLK_NAMES_96                                                 \
  DLK_NAMES_64                                                       \
  ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79" \
  ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define DLK_NAMES_128                                                            \
  DLK_NAMES_96                                                                   \
  ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111" \
  ",%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define DLK_SUMS_4(d, i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define DLK_SUMS_16(d, i) \
  DLK_SUMS_4(d, i), DLK_SUMS_4(d, (i) + 4), DLK_SUMS_4(d, (i) + 8), DLK_SUMS_4(d, (i) + 12)
#define DLK_SUMS_32(d, i) DLK_SUMS_16(d, i), DLK_SUMS_16(d, (i) + 16)
#define DLK_SUMS_64(d, i) DLK_SUMS_32(d, i), DLK_SUMS_32(d, (i) + 32)

// d = a b^T (+ d), both in shared memory, k-major: 64 x 128 x 16.
__device__ __forceinline__ void WgmmaShared(float (&d)[64], uint64_t a, uint64_t b,
                                            int accumulate) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" DLK_NAMES_64
      "}, %64, %65, p, 1, 1, 0, 0;\n"
      "}\n"
      : DLK_SUMS_64(d, 0)
      : "l"(a), "l"(b), "r"(accumulate));
}

// The same, 64 x 192 x 16.
__device__ __forceinline__ void WgmmaShared(float (&d)[96], uint64_t a, uint64_t b,
                                            int accumulate) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %98, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {" DLK_NAMES_96
      "}, %96, %97, p, 1, 1, 0, 0;\n"
      "}\n"
      : DLK_SUMS_64(d, 0), DLK_SUMS_32(d, 64)
      : "l"(a), "l"(b), "r"(accumulate));
}

// The same, 64 x 256 x 16.
__device__ __forceinline__ void WgmmaShared(float (&d)[128], uint64_t a, uint64_t b,
                                            int accumulate) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" DLK_NAMES_128
      "}, %128, %129, p, 1, 1, 0, 0;\n"
      "}\n"
      : DLK_SUMS_64(d, 0), DLK_SUMS_64(d, 64)
      : "l"(a), "l"(b), "r"(accumulate));
}

// The same, 64 x 64 x 16.
__device__ __forceinline__ void WgmmaShared(float (&d)[32], uint64_t a, uint64_t b,
                                            int accumulate) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" DLK_NAMES_32
      "}, %32, %33, p, 1, 1, 0, 0;\n"
      "}\n"
      : DLK_SUMS_32(d, 0)
      : "l"(a), "l"(b), "r"(accumulate));
}

// The same, 64 x 32 x 16.
__device__ __forceinline__ void WgmmaShared(float (&d)[16], uint64_t a, uint64_t b,
                                            int accumulate) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %18, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {" DLK_NAMES_16
      "}, %16, %17, p, 1, 1, 0, 0;\n"
      "}\n"
      : DLK_SUMS_16(d, 0)
      : "l"(a), "l"(b), "r"(accumulate));
}

// d += a b, a in registers, b in shared memory with its rows along k.
__device__ __forceinline__ void WgmmaRegisters(float (&d)[64], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" DLK_NAMES_64
               "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n"
               : DLK_SUMS_64(d, 0)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#undef DLK_SUMS_64
#undef DLK_SUMS_32
#undef DLK_SUMS_16
#undef DLK_SUMS_4
#undef DLK_NAMES_128
#undef DLK_NAMES_96
#undef DLK_NAMES_64
#undef DLK_NAMES_32
#undef DLK_NAMES_16

}  // namespace dlcore::kernels
