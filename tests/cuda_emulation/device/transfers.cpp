// mbarrier, and TMA's copies between tensors and shared memory.
//
// A load arrives when no thread can go on without it; a store reads shared memory when its thread waits for that.
#include <cstring>
#include <deque>
#include <map>
#include <vector>

#include "block.h"
#include "emulated.h"
#include "matrices.h"
#include "races.h"

namespace emu {
namespace {


struct Mbarrier {
  uint32_t expected, arrived;
  int64_t bytes;
  Round round;
  int agent;
  Knowledge gathering, last;
};
struct Transfer {
  CUtensorMap map;
  int at[5];
  uint32_t place;
  Mbarrier* barrier;
  uint32_t rows() const {
    uint32_t count = 1;
    for (uint32_t n = 1; n < map.rank; n++) count *= map.box[n];
    return count;
  }
  uint32_t size() const { return rows() * ROW; }
};
struct Stores {
  std::vector<Transfer> open;
  std::deque<std::vector<Transfer>> groups;
};

std::map<uint32_t, Mbarrier> mbarriers;
std::deque<Transfer> loads;
Stores stores[MOST_THREADS];

Mbarrier& mbarrier(uint32_t at) {
  auto found = mbarriers.find(at);
  if (found == mbarriers.end()) fail("thread %d uses the mbarrier at byte %u before it was set up", current, at);
  check_order(at, 8, "use of an mbarrier");
  return found->second;
}
void complete(Mbarrier& barrier) {
  if (barrier.arrived > barrier.expected) fail("%u arrive at an mbarrier of %u", barrier.arrived, barrier.expected);
  if (barrier.arrived < barrier.expected || barrier.bytes) return;
  barrier.arrived = 0;
  barrier.last = barrier.gathering;
  barrier.gathering.clear();
  barrier.round++;
}
void arrive(Mbarrier& barrier, uint32_t count) {
  barrier.gathering.gather(current);
  barrier.arrived += count;
  complete(barrier);
}

Transfer transfer(const void* map, const int* at, uint32_t place, Mbarrier* barrier) {
  Transfer made;
  memcpy(&made.map, map, sizeof made.map);
  memcpy(made.at, at, made.map.rank * sizeof(int));
  made.place = place, made.barrier = barrier;
  if (made.map.box[0] * 2 != ROW || place % ROW) fail("TMA at byte %u: rows are not of %u bytes", place, ROW);
  return made;
}
// Calls `visit(address, column count)` for each row of the box, null where it lies outside of the tensor.
template <class Visit> void each_row(const Transfer& given, Visit visit) {
  const CUtensorMap& map = given.map;
  for (uint32_t row = 0; row < given.rows(); row++) {
    uint64_t address = map.address;
    uint32_t left = row;
    bool inside = true;
    for (uint32_t n = 1; n < map.rank; n++) {
      int64_t index = given.at[n] + (int64_t)(left % map.box[n]);
      left /= map.box[n];
      inside = inside && index >= 0 && index < (int64_t)map.sizes[n];
      address += index * map.strides[n - 1];
    }
    visit(row, inside ? (char*)address : nullptr);
  }
}
char* element(const Transfer& given, char* row, uint32_t column) {
  int64_t index = given.at[0] + (int64_t)column;
  return row && index >= 0 && index < (int64_t)given.map.sizes[0] ? row + index * 2 : nullptr;
}
void load(const Transfer& given) {
  each_row(given, [&](uint32_t row, char* from) {
    for (uint32_t column = 0; column < ROW / 2; column++) {
      unsigned char* to = emu::shared + swizzled(given.place + row * ROW + column * 2);
      if (char* source = element(given, from, column)) memcpy(to, source, 2);
      else memset(to, 0, 2);
    }
  });
}
void store(const Transfer& given) {
  each_row(given, [&](uint32_t row, char* to) {
    for (uint32_t column = 0; column < ROW / 2; column++)
      if (char* target = element(given, to, column))
        memcpy(target, emu::shared + swizzled(given.place + row * ROW + column * 2), 2);
  });
}

}  // namespace

void start_transfers() {
  mbarriers.clear();
  loads.clear();
  for (auto& mine : stores) mine = Stores();
}
void end_transfers() {
  if (!stores[current].open.empty() || !stores[current].groups.empty())
    fail("thread %d ends while its TMA store may still read shared memory", current);
}
bool let_a_transfer_arrive() {
  if (loads.empty()) return false;
  Transfer given = loads.front();
  loads.pop_front();
  load(given);
  Mbarrier& barrier = *given.barrier;
  barrier.gathering.gather(barrier.agent, act(barrier.agent));
  end_write(barrier.agent, given.place, given.size());
  barrier.bytes -= given.size();
  complete(barrier);
  return true;
}

}  // namespace emu

using namespace emu;

void emu_fence_proxy() { fence_proxy(); }
void emu_mbarrier_init(uint32_t at, uint32_t count) {
  write(at, 8, "mbarrier.init");
  Mbarrier& made = mbarriers[at] = Mbarrier();
  made.expected = count, made.agent = new_agent();
}
void emu_mbarrier_arrive(uint32_t at, uint32_t count) { arrive(mbarrier(at), count); }
void emu_mbarrier_expect(uint32_t at, uint32_t bytes) {
  Mbarrier& barrier = mbarrier(at);
  barrier.bytes += bytes;
  arrive(barrier, 1);
}
void emu_mbarrier_wait(uint32_t at, int parity) {
  Mbarrier& barrier = mbarrier(at);
  while ((barrier.round & 1) == parity) wait_for_change(barrier.round, barrier.round, "an mbarrier");
  barrier.last.give(current);
}
void emu_tensor_load(uint32_t to, const void* map, const int* at, uint32_t barrier) {
  Transfer made = transfer(map, at, to, &mbarrier(barrier));
  check_order(barrier, 8, "TMA load", Proxy::async);
  begin_write(to, made.size(), "TMA load", Proxy::async);
  memset(emu::shared + to, 0x7f, made.size());
  loads.push_back(made);
}
void emu_tensor_store(const void* map, const int* at, uint32_t from) {
  Transfer made = transfer(map, at, from, nullptr);
  begin_read(from, made.size(), "TMA store", Proxy::async);
  stores[current].open.push_back(made);
}
void emu_bulk_commit() {
  Stores& mine = stores[current];
  mine.groups.push_back(std::move(mine.open));
  mine.open.clear();
}
void emu_bulk_wait(int groups) {
  auto& mine = stores[current].groups;
  for (; (int)mine.size() > groups; mine.pop_front())
    for (const Transfer& each : mine.front()) {
      store(each);
      end_read(current, each.place, each.size());
    }
}
