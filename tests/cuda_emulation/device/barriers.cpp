// Barriers of a block, a warp, and those with numbers; shuffles, which order nothing.
#include <cstring>
#include <vector>

#include "block.h"
#include "emulated.h"
#include "races.h"

namespace emu {
namespace {

struct Barrier {
  uint32_t count;
  Round round;
  Knowledge brought;
  std::vector<int> waiting;
};
Barrier barriers[16];

void arrive(Barrier& barrier, uint32_t expected, bool waits, const char* what) {
  barrier.brought.gather(current);
  if (waits) barrier.waiting.push_back(current);
  if (++barrier.count < expected) {
    if (waits) wait_for_change(barrier.round, barrier.round, what);
    return;
  }
  for (int thread : barrier.waiting) barrier.brought.give(thread);
  barrier.waiting.clear();
  barrier.brought.clear();
  barrier.count = 0;
  barrier.round++;
}

}  // namespace

void start_barriers() {
  for (auto& barrier : barriers) barrier = Barrier();
}

}  // namespace emu

using namespace emu;

void emu_block_sync() { arrive(barriers[0], threads, true, "the barrier of the block"); }
void emu_named_barrier(uint32_t number, uint32_t count, bool waits) {
  if (number > 15) fail("there is no barrier %u", number);
  arrive(barriers[number], count, waits, "a barrier with a number");
}
void emu_warp_sync() {
  auto order = [] {
    Knowledge brought;
    int first = current / WARP * WARP;
    for (int lane = 0; lane < WARP; lane++) brought.gather(first + lane);
    for (int lane = 0; lane < WARP; lane++) brought.give(first + lane);
  };
  together(order, "the barrier of the warp");
}
uint32_t emu_elect() { return current % WARP == 0; }
void emu_shuffle(void* value, int size, int source) {
  struct Lane { void* value; int source; };
  static Lane lanes[MOST_WARPS][WARP];
  Lane* mine = lanes[current / WARP];
  mine[current % WARP] = {value, source % WARP};
  auto exchange = [=] {
    char values[WARP][8];
    for (int lane = 0; lane < WARP; lane++) memcpy(values[lane], mine[lane].value, size);
    for (int lane = 0; lane < WARP; lane++) memcpy(mine[lane].value, values[mine[lane].source], size);
  };
  together(exchange, "a shuffle");
}
