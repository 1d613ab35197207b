#include "transport/wire.h"

#include <cerrno>

#include <sys/random.h>

#include "base/check.h"
#include "transport/wire_codec.h"

namespace dlcore {
namespace {

constexpr size_t kLayoutFixedBytes = 4 * 3 + 4;
constexpr size_t kMaxLayoutBytes = kLayoutFixedBytes + 64 * 20 + 4096 * 4;
constexpr size_t kStatusBytes = 2 + kMaxMessageBytes;
constexpr size_t kLeaseRefBytes = 16;

void PutBlob(std::span<const std::byte> blob, WireWriter* w) {
  DLCORE_CHECK(blob.size() <= kMaxBlobBytes) << blob.size();
  w->Put(static_cast<uint16_t>(blob.size()));
  w->PutBytes(blob);
}

void GetBlob(WireReader* r, Blob* out) {
  const auto raw = r->GetBytes(std::min<size_t>(r->Get<uint16_t>(), kMaxBlobBytes + 1));
  out->assign(raw.begin(), raw.end());
}

void PutLease(LeaseRef lease, WireWriter* w) {
  w->Put(lease.id);
  w->Put(lease.epoch);
}

LeaseRef GetLease(WireReader* r) {
  LeaseRef lease;
  lease.id = r->Get<uint64_t>();
  lease.epoch = r->Get<uint64_t>();
  return lease;
}

void PutProgress(LeaseProgress progress, WireWriter* w) {
  w->Put(progress.tokens);
  w->Put(progress.layers);
}

LeaseProgress GetProgress(WireReader* r) {
  LeaseProgress progress;
  progress.tokens = r->Get<int32_t>();
  progress.layers = r->Get<int32_t>();
  return progress;
}

void PutStatus(const Status& status, WireWriter* w) {
  const std::string_view text = std::string_view(status.message()).substr(0, kMaxMessageBytes);
  w->Put(static_cast<uint8_t>(status.code()));
  w->Put(static_cast<uint8_t>(text.size()));
  w->PutBytes(std::as_bytes(std::span(text)));
}

bool GetStatus(WireReader* r, Status* out) {
  const uint8_t code = r->Get<uint8_t>();
  const auto text = r->GetBytes(r->Get<uint8_t>());
  if (!r->ok() || code > static_cast<uint8_t>(StatusCode::kInternal)) return false;
  *out = Status(static_cast<StatusCode>(code),
                std::string(reinterpret_cast<const char*>(text.data()), text.size()));
  return true;
}

void PutLayout(const KvLayout& layout, WireWriter* w) {
  w->Put(layout.tp_size);
  w->Put(layout.tp_rank);
  w->Put(static_cast<uint32_t>(layout.groups.size()));
  w->Put(static_cast<uint32_t>(layout.layers.size()));
  for (const KvGroup& g : layout.groups) {
    for (const int32_t v :
         {g.block_size, g.num_blocks, g.num_planes, g.num_kv_heads, g.bytes_per_head}) {
      w->Put(v);
    }
  }
  for (const KvLayer& layer : layout.layers) w->Put(layer.group);
}

bool GetLayout(WireReader* r, KvLayout* out) {
  out->tp_size = r->Get<int32_t>();
  out->tp_rank = r->Get<int32_t>();
  const uint64_t num_groups = r->Get<uint32_t>();
  const uint64_t num_layers = r->Get<uint32_t>();
  if (num_groups * 20 + num_layers * 4 > r->left()) return false;
  out->groups.resize(num_groups);
  out->layers.resize(num_layers);
  for (KvGroup& g : out->groups) {
    for (int32_t* v :
         {&g.block_size, &g.num_blocks, &g.num_planes, &g.num_kv_heads, &g.bytes_per_head}) {
      *v = r->Get<int32_t>();
    }
  }
  for (KvLayer& layer : out->layers) layer = {r->Get<int32_t>(), 0};
  return r->ok() && out->Validate().ok();
}

bool GetBlocks(WireReader* r, const KvLayout& layout, LeaseBlocks* out) {
  out->resize(layout.groups.size());
  for (size_t g = 0; g < out->size(); ++g) {
    const uint64_t count = r->Get<uint32_t>();
    if (count * 4 > r->left()) return false;
    (*out)[g].resize(count);
    for (BlockId& block : (*out)[g]) {
      block = BlockId(r->Get<int32_t>());
      if (block.value < 0 || block.value >= layout.groups[g].num_blocks) return false;
    }
  }
  return true;
}

}  // namespace

size_t MaxBodyBytes(uint8_t type) {
  switch (static_cast<FrameType>(type)) {
    case FrameType::kChallenge:
      return kNonceBytes;
    case FrameType::kHello:
      return kNonceBytes + sizeof(Sha256Digest) + 2 + kMaxBlobBytes;
    case FrameType::kWelcome:
      return sizeof(Sha256Digest) + 2 + kMaxBlobBytes;
    case FrameType::kOpenLease:
      return kLeaseRefBytes + 12;
    case FrameType::kLeaseInfo:
      return kStatusBytes + kMaxLayoutBytes + 12 + 64 * 4 + kMaxLeaseBlocks * 4;
    case FrameType::kRead:
      return kLeaseRefBytes + 16 + kMaxRangesPerRead * 12;
    case FrameType::kReadReply:
      return kStatusBytes + kMaxInlineBytes;
    case FrameType::kRelease:
      return kLeaseRefBytes;
    case FrameType::kCancel:
      return 0;
  }
  return 0;
}

void EncodeHeader(const FrameHeader& header, std::vector<std::byte>* out) {
  WireWriter w;
  w.Put(kFrameMagic);
  w.Put(kWireVersion);
  w.Put(static_cast<uint8_t>(header.type));
  w.Put(uint16_t{0});
  w.Put(header.length);
  w.Put(header.request);
  *out = w.Take();
}

std::optional<FrameHeader> DecodeHeader(std::span<const std::byte, kFrameHeaderBytes> bytes) {
  WireReader r(bytes);
  const uint32_t magic = r.Get<uint32_t>();
  const uint8_t version = r.Get<uint8_t>();
  const uint8_t type = r.Get<uint8_t>();
  const uint16_t padding = r.Get<uint16_t>();
  const uint32_t length = r.Get<uint32_t>();
  const uint64_t request = r.Get<uint64_t>();
  const bool known = type >= static_cast<uint8_t>(FrameType::kChallenge) &&
                     type <= static_cast<uint8_t>(FrameType::kCancel);
  if (magic != kFrameMagic || version != kWireVersion || padding != 0 || !known ||
      length > MaxBodyBytes(type)) {
    return std::nullopt;
  }
  return FrameHeader{static_cast<FrameType>(type), length, request};
}

Blob Encode(const ChallengeMessage& message) {
  WireWriter w;
  w.PutBytes(std::as_bytes(std::span(message.nonce)));
  return w.Take();
}

Blob Encode(const HelloMessage& message) {
  WireWriter w;
  w.PutBytes(std::as_bytes(std::span(message.nonce)));
  w.PutBytes(std::as_bytes(std::span(message.mac)));
  PutBlob(message.blob, &w);
  return w.Take();
}

Blob Encode(const WelcomeMessage& message) {
  WireWriter w;
  w.PutBytes(std::as_bytes(std::span(message.mac)));
  PutBlob(message.blob, &w);
  return w.Take();
}

Blob Encode(const OpenLeaseMessage& message) {
  WireWriter w;
  PutLease(message.lease, &w);
  PutProgress(message.at_least, &w);
  w.Put(message.timeout_ms);
  return w.Take();
}

Blob Encode(const LeaseInfoMessage& message) {
  WireWriter w;
  PutStatus(message.status, &w);
  if (!message.status.ok()) return w.Take();
  PutLayout(message.info.layout, &w);
  w.Put(message.info.num_tokens);
  PutProgress(message.info.done, &w);
  for (const auto& table : message.info.blocks) {
    w.Put(static_cast<uint32_t>(table.size()));
    for (const BlockId block : table) w.Put(block.value);
  }
  return w.Take();
}

Blob Encode(const ReadMessage& message) {
  WireWriter w;
  PutLease(message.lease, &w);
  w.Put(message.layer);
  w.Put(message.timeout_ms);
  w.Put(message.slot);
  w.Put(static_cast<uint32_t>(message.ranges.size()));
  for (const LayerRange& range : message.ranges) {
    w.Put(range.offset);
    w.Put(static_cast<uint32_t>(range.length));
  }
  return w.Take();
}

Blob EncodeReadReply(const Status& status) {
  WireWriter w;
  PutStatus(status, &w);
  return w.Take();
}

Blob Encode(const ReleaseMessage& message) {
  WireWriter w;
  PutLease(message.lease, &w);
  return w.Take();
}

bool Decode(std::span<const std::byte> body, ChallengeMessage* out) {
  WireReader r(body);
  r.GetArray(&out->nonce);
  return r.AtEnd();
}

bool Decode(std::span<const std::byte> body, HelloMessage* out) {
  WireReader r(body);
  r.GetArray(&out->nonce);
  r.GetArray(&out->mac);
  GetBlob(&r, &out->blob);
  return r.AtEnd() && out->blob.size() <= kMaxBlobBytes;
}

bool Decode(std::span<const std::byte> body, WelcomeMessage* out) {
  WireReader r(body);
  r.GetArray(&out->mac);
  GetBlob(&r, &out->blob);
  return r.AtEnd() && out->blob.size() <= kMaxBlobBytes;
}

bool Decode(std::span<const std::byte> body, OpenLeaseMessage* out) {
  WireReader r(body);
  out->lease = GetLease(&r);
  out->at_least = GetProgress(&r);
  out->timeout_ms = r.Get<uint32_t>();
  return r.AtEnd();
}

bool Decode(std::span<const std::byte> body, LeaseInfoMessage* out) {
  WireReader r(body);
  if (!GetStatus(&r, &out->status)) return false;
  if (!out->status.ok()) return r.AtEnd();
  if (!GetLayout(&r, &out->info.layout)) return false;
  out->info.num_tokens = r.Get<int32_t>();
  out->info.done = GetProgress(&r);
  if (!GetBlocks(&r, out->info.layout, &out->info.blocks)) return false;
  const int32_t num_layers = static_cast<int32_t>(out->info.layout.layers.size());
  const LeaseProgress done = out->info.done;
  return r.AtEnd() && done.tokens >= 0 && done.tokens <= out->info.num_tokens && done.layers >= 0 &&
         done.layers <= num_layers;
}

bool Decode(std::span<const std::byte> body, ReadMessage* out) {
  WireReader r(body);
  out->lease = GetLease(&r);
  out->layer = r.Get<uint32_t>();
  out->timeout_ms = r.Get<uint32_t>();
  out->slot = r.Get<uint32_t>();
  const uint32_t count = r.Get<uint32_t>();
  if (count == 0 || count > kMaxRangesPerRead || r.left() != size_t{count} * 12) return false;
  out->ranges.resize(count);
  for (LayerRange& range : out->ranges) {
    range.offset = r.Get<uint64_t>();
    range.length = r.Get<uint32_t>();
  }
  return r.AtEnd();
}

bool Decode(std::span<const std::byte> body, ReadReplyMessage* out) {
  WireReader r(body);
  if (!GetStatus(&r, &out->status)) return false;
  out->payload = r.GetBytes(r.left());
  return r.ok();
}

bool Decode(std::span<const std::byte> body, ReleaseMessage* out) {
  WireReader r(body);
  out->lease = GetLease(&r);
  return r.AtEnd();
}

Sha256Digest MakeProof(std::string_view key, AuthRole role, std::string_view transport,
                       const Nonce& owner_nonce, const Nonce& reader_nonce,
                       std::span<const std::byte> blob) {
  HmacSha256 mac(key);
  mac.Update(role == AuthRole::kReader ? "dlcore-kv-1 reader " : "dlcore-kv-1 owner ");
  mac.Update(transport);
  mac.Update(std::as_bytes(std::span(owner_nonce)));
  mac.Update(std::as_bytes(std::span(reader_nonce)));
  mac.Update(blob);
  return mac.Finish();
}

Nonce RandomNonce() {
  Nonce nonce;
  size_t filled = 0;
  while (filled < nonce.size()) {
    const ssize_t n = getrandom(nonce.data() + filled, nonce.size() - filled, 0);
    DLCORE_CHECK(n > 0 || errno == EINTR) << "getrandom failed";
    if (n > 0) filled += static_cast<size_t>(n);
  }
  return nonce;
}

}  // namespace dlcore
