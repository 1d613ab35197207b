#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "transport/wire_codec.h"

namespace dlcore {

// What one side of a reliable RDMA connection must know of the other's queue pair.
struct QueuePairAddress {
  uint32_t qp_num = 0;
  uint32_t psn = 0;
  uint16_t lid = 0;
  uint8_t mtu = 0;  // ibv_mtu
  std::array<uint8_t, 16> gid{};
};

inline void PutAddress(const QueuePairAddress& address, WireWriter* w) {
  w->Put(address.qp_num);
  w->Put(address.psn);
  w->Put(address.lid);
  w->Put(address.mtu);
  w->PutBytes(std::as_bytes(std::span(address.gid)));
}

inline QueuePairAddress GetAddress(WireReader* r) {
  QueuePairAddress address;
  address.qp_num = r->Get<uint32_t>();
  address.psn = r->Get<uint32_t>();
  address.lid = r->Get<uint16_t>();
  address.mtu = r->Get<uint8_t>();
  r->GetArray(&address.gid);
  return address;
}

}  // namespace dlcore
