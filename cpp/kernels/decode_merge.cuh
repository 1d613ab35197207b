#pragma once

#include "kernels/decode_runs.cuh"
#include "kernels/decode_tile.cuh"

// How the sums of a pair whose units are cut between warps become one.

namespace dlcore::kernels {

__device__ __forceinline__ int LoadAcquire(const int* p) {
  int v;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}

template <int kHeadDim, class Cache>
struct Sums {
  using State = WarpState<kHeadDim, Cache>;
  static constexpr int kTiles = State::kHalves * 4;

  // Sums of rows g to those of the pair's run, in every lane.
  __device__ static void Complete(State& state) {
#pragma unroll
    for (float& sum : state.sum) {
#pragma unroll
      for (int offset = 4; offset < kWarpSize; offset *= 2) {
        sum += __shfl_xor_sync(kFullMask, sum, offset);
      }
    }
  }
  __device__ static float4* PartialO(const DecodeParams& p, int part) {
    return reinterpret_cast<float4*>(p.partial_o +
                                     static_cast<int64_t>(part) * kMaxGroup * kHeadDim) +
           threadIdx.x % kWarpSize;
  }
  __device__ static float4* PartialMl(const DecodeParams& p, int part) {
    return reinterpret_cast<float4*>(p.partial_ml + part * kMaxGroup) + threadIdx.x % 4;
  }
  __device__ static void Leave(const DecodeParams& p, int part, const State& state) {
    float4* o = PartialO(p, part);
    // Lanes of columns past the group have nothing to keep.
    if (static_cast<int>(threadIdx.x) % 4 * 2 >= p.a.num_q_heads / p.a.num_kv_heads) return;
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      o[i * kWarpSize] = make_float4(state.o[i][0], state.o[i][1], state.o[i][2], state.o[i][3]);
    }
    if (threadIdx.x % kWarpSize < 4) {
      *PartialMl(p, part) = make_float4(state.max[0], state.sum[0], state.max[1], state.sum[1]);
    }
  }
  // What a part leaves, and its worker still has.
  struct Part {
    float max[2], sum[2];
    float4 o[kTiles];
  };
  __device__ static Part PartOf(const State& state) {
    Part part{{state.max[0], state.max[1]}, {state.sum[0], state.sum[1]}};
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      part.o[i] = make_float4(state.o[i][0], state.o[i][1], state.o[i][2], state.o[i][3]);
    }
    return part;
  }
  __device__ static Part Load(const DecodeParams& p, int index) {
    if (static_cast<int>(threadIdx.x) % 4 * 2 >= p.a.num_q_heads / p.a.num_kv_heads) return {};
    const float4 ml = __ldcg(PartialMl(p, index));
    Part part{{ml.x, ml.z}, {ml.y, ml.w}};
#pragma unroll
    for (int i = 0; i < kTiles; ++i) part.o[i] = __ldcg(PartialO(p, index) + i * kWarpSize);
    return part;
  }
  __device__ static void Add(const Part& part, State& state) {
    float own[2], other[2];
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const float m = fmaxf(state.max[c], part.max[c]);
      own[c] = exp2f(state.max[c] - m);
      other[c] = exp2f(part.max[c] - m);
      state.max[c] = m;
      state.sum[c] = state.sum[c] * own[c] + part.sum[c] * other[c];
    }
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      float(&tile)[4] = state.o[i];
      tile[0] = tile[0] * own[0] + part.o[i].x * other[0];
      tile[1] = tile[1] * own[1] + part.o[i].y * other[1];
      tile[2] = tile[2] * own[0] + part.o[i].z * other[0];
      tile[3] = tile[3] * own[1] + part.o[i].w * other[1];
    }
  }
  // out: [group, D]
  __device__ static void Store(const State& state, float v_scale, int group, bf16* out) {
    const int lane = threadIdx.x % kWarpSize, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int column = 0; column < 2; ++column) {
      const int member = 2 * t + column;
      if (member >= group) continue;
      const float factor = v_scale / state.sum[column];
#pragma unroll
      for (int c = 0; c < State::kHalves; ++c) {
        float v[8];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          v[2 * j] = state.o[4 * c + j][column] * factor;
          v[2 * j + 1] = state.o[4 * c + j][column + 2] * factor;
        }
        Store16(out + member * kHeadDim + 8 * (State::kHalves * g + c), Pack8(v));
      }
    }
  }
  // Merges a cut pair, or leaves this worker's part of it for the last one. True in the last, with
  // the pair's sums in `state`.
  template <class Shape>
  __device__ static bool Merge(const DecodeParams& p, const Runs<Shape>& runs,
                               const Segment<Shape>& segment, int worker, State& state) {
    const int num_parts = runs.NumParts(segment.pair_start, segment.num_units);
    int* arrived = p.arrived + segment.seq * p.a.num_kv_heads + segment.head;
    const bool is_leader = threadIdx.x % kWarpSize == 0;
    int before = is_leader ? LoadAcquire(arrived) : 0;
    if (__shfl_sync(kFullMask, before, 0) != num_parts - 1) {
      Leave(p, runs.Part(worker, segment.pair_start), state);
      __threadfence();
      __syncwarp();
      if (is_leader) before = atomicAdd(arrived, 1);
      if (__shfl_sync(kFullMask, before, 0) != num_parts - 1) return false;
    }
    __threadfence();
    if (is_leader) *arrived = 0;
    // Not in the order of arrival: a step has the same results every time.
    const Part own = PartOf(state);
    state.Start();
    for (int i = 0; i < num_parts; ++i) {
      const int sharer = runs.Sharer(segment.pair_start, i);
      Add(sharer == worker ? own : Load(p, runs.Part(sharer, segment.pair_start)), state);
    }
    return true;
  }
};

}  // namespace dlcore::kernels
