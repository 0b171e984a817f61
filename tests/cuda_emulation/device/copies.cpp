// cp.async: what is copied arrives when its thread waits for it, and no sooner.
#include <cstring>
#include <deque>
#include <vector>

#include "block.h"
#include "emulated.h"
#include "races.h"

namespace emu {
namespace {

struct Copy {
  uint32_t to;
  const void* from;
  int size, width;
};
struct Copies {
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> groups;
};
Copies copies[MOST_THREADS];

}  // namespace

void start_copies() {
  for (auto& mine : copies) mine = Copies();
}
void end_copies() {
  const Copies& mine = copies[current];
  bool under_way = !mine.open.empty();
  for (const auto& group : mine.groups) under_way |= !group.empty();
  if (under_way) fail("thread %d ends while its cp.async is under way", current);
}

}  // namespace emu

using namespace emu;

void emu_copy(uint32_t to, const void* from, int size, int width) {
  begin_write(to, width, "cp.async", Proxy::generic);
  memset(emu::shared + to, 0x7f, width);
  copies[current].open.push_back({to, from, size, width});
}
void emu_copy_commit() {
  Copies& mine = copies[current];
  mine.groups.push_back(std::move(mine.open));
  mine.open.clear();
}
void emu_copy_wait(int groups) {
  auto& mine = copies[current].groups;
  for (; (int)mine.size() > groups; mine.pop_front())
    for (const Copy& copy : mine.front()) {
      memset(emu::shared + copy.to, 0, copy.width);
      memcpy(emu::shared + copy.to, copy.from, copy.size);
      end_write(current, copy.to, copy.width);
    }
}
