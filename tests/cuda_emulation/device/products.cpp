// wgmma: products of a warpgroup, which happen when one of its threads waits for them and no sooner.
//
// Until then shared memory that they read must not change, and registers that they add to must not be touched.
#include "products.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#include "block.h"
#include "emulated.h"
#include "matrices.h"
#include "races.h"

namespace emu {
namespace {

constexpr int GROUP = 128, GROUP_ROWS = 64, DEPTH = 16, MOST_COLUMNS = 256;

struct Lane {
  float* sums[MOST_COLUMNS / 2];
  uint32_t a[4];
};
struct Product {
  int columns;
  bool a_shared, add, b_transposed, bfloat;
  uint64_t a_at, b_at;
  Lane lanes[GROUP];
  bool same(const Product& other) const {
    return columns == other.columns && a_shared == other.a_shared && add == other.add &&
           b_transposed == other.b_transposed && a_at == other.a_at && b_at == other.b_at;
  }
};
struct Warpgroup {
  std::deque<std::unique_ptr<Product>> products;  // from number `done` on
  std::vector<std::unique_ptr<Product>> spare;
  int done;
  Round committed;
  int agent;
};
struct Registers {
  const float *begin, *end;
  int product;
};
struct Thread {
  bool fenced;  // once, which the first wgmma needs
  int issued;
  std::deque<int> groups;  // the number of products issued up to the end of each
  std::vector<Registers> in_flight;
  std::vector<uint32_t> touched;  // since the last wgmma.fence
  std::vector<bool> is_touched;
};
Warpgroup warpgroups[MOST_THREADS / GROUP];
Thread issuers[MOST_THREADS];

struct Descriptor {  // of a matrix in shared memory, in bytes
  uint32_t start, panel, rows;
  explicit Descriptor(uint64_t bits)
      : start((bits & 0x3fff) << 4), panel((bits >> 16 & 0x3fff) << 4), rows((bits >> 32 & 0x3fff) << 4) {
    if (bits >> 62 != 1) fail("wgmma: rows are not swizzled in 128 bytes");
  }
  // Rows of DEPTH numbers, groups of eight rows `rows` bytes apart.
  uint32_t along(int row, int k) const { return swizzled(start + row / 8 * rows + row % 8 * ROW + k * 2); }
  // DEPTH rows of columns, 64 columns in a panel.
  uint32_t across(int column, int k) const {
    return swizzled(start + column / 64 * panel + k / 8 * rows + k % 8 * ROW + column % 64 * 2);
  }
};
// Calls `visit(place)` for each 16 bytes that a product reads.
template <class Visit> void each_read(const Product& given, Visit visit) {
  Descriptor b(given.b_at);
  if (given.b_transposed)
    for (int k = 0; k < DEPTH; k++)
      for (int column = 0; column < given.columns; column += 8) visit(b.across(column, k));
  else
    for (int column = 0; column < given.columns; column++)
      for (int k = 0; k < DEPTH; k += 8) visit(b.along(column, k));
  if (!given.a_shared) return;
  Descriptor a(given.a_at);
  for (int row = 0; row < GROUP_ROWS; row++)
    for (int k = 0; k < DEPTH; k += 8) visit(a.along(row, k));
}
float number(uint32_t at, bool bfloat) {
  uint16_t bits;
  memcpy(&bits, emu::shared + at, 2);
  return widened(bits, bfloat);
}
void multiply(const Product& given) {
  static float a[GROUP_ROWS][DEPTH], b[DEPTH][MOST_COLUMNS], sums[MOST_COLUMNS];
  Descriptor at_b(given.b_at);
  for (int k = 0; k < DEPTH; k++)
    for (int column = 0; column < given.columns; column++)
      b[k][column] = number(given.b_transposed ? at_b.across(column, k) : at_b.along(column, k), given.bfloat);
  if (given.a_shared) {
    Descriptor at_a(given.a_at);
    for (int row = 0; row < GROUP_ROWS; row++)
      for (int k = 0; k < DEPTH; k++) a[row][k] = number(at_a.along(row, k), given.bfloat);
  } else {
    for (int thread = 0; thread < GROUP; thread++)
      for (int part = 0; part < 4; part++)
        for (int n = 0; n < 2; n++) {
          int row = thread / WARP * 16 + thread % WARP / 4 + part % 2 * 8, k = thread % 4 * 2 + n + part / 2 * 8;
          a[row][k] = widened(given.lanes[thread].a[part], n, given.bfloat);
        }
  }
  for (int row = 0; row < GROUP_ROWS; row++) {
    // Lane 4 r + c of a warp holds columns 2 c and 2 c + 1 of every eight, of rows r and r + 8.
    const Lane* lanes = &given.lanes[row / 16 * WARP + row % 8 * 4];
    int upper = row % 16 / 8 * 2;
    auto place = [&](int column) { return lanes[column % 8 / 2].sums[column / 8 * 4 + upper + column % 2]; };
    for (int column = 0; column < given.columns; column++) sums[column] = given.add ? *place(column) : 0.0f;
    for (int k = 0; k < DEPTH; k++)
      for (int column = 0; column < given.columns; column++) sums[column] += a[row][k] * b[k][column];
    for (int column = 0; column < given.columns; column++) *place(column) = sums[column];
  }
}
void happen(Warpgroup& group, int until) {
  for (; group.done < until; group.done++) {
    Product& next = *group.products.front();
    multiply(next);
    act(group.agent);  // at time `done` + 1
    each_read(next, [&](uint32_t at) { end_read(group.agent, at, 16); });
    group.spare.push_back(std::move(group.products.front()));
    group.products.pop_front();
  }
}

}  // namespace

void start_products() {
  for (auto& group : warpgroups) group = Warpgroup();
  for (auto& thread : issuers) thread = Thread();
}
void end_products() {
  if (issuers[current].issued > warpgroups[current / GROUP].done)
    fail("thread %d ends while its wgmma is under way", current);
}
void touch_registers(const void* place, uint32_t size) {
  Thread& mine = issuers[current];
  for (const Registers& each : mine.in_flight)
    if (place < each.end && (const char*)place + size > (const char*)each.begin)
      fail("race: thread %d (warp %d) touches registers that its wgmma is still adding to: no wgmma.wait_group lies between",
           current, current / WARP);
  if (mine.is_touched.empty()) mine.is_touched.resize(STACK_BYTES / 4);
  for (uint32_t word = stack_word(place), last = stack_word((const char*)place + size - 1); word <= last; word++)
    if (!mine.is_touched[word]) {
      mine.is_touched[word] = true;
      mine.touched.push_back(word);
    }
}

}  // namespace emu

using namespace emu;

void emu_wgmma_fence() {
  Thread& mine = issuers[current];
  mine.fenced = true;
  for (uint32_t word : mine.touched) mine.is_touched[word] = false;
  mine.touched.clear();
}
void emu_wgmma(float** sums, int columns, const uint32_t* a, uint64_t a_at, uint64_t b_at, bool add, bool b_transposed,
               bool bfloat) {
  Thread& mine = issuers[current];
  Warpgroup& group = warpgroups[current / GROUP];
  if (!mine.fenced) fail("thread %d issues its first wgmma without a wgmma.fence", current);
  if (!group.agent) group.agent = new_agent();
  int place = mine.issued - group.done;
  if (place == (int)group.products.size()) {
    if (group.spare.empty()) group.spare.push_back(std::make_unique<Product>());
    group.products.push_back(std::move(group.spare.back()));
    group.spare.pop_back();
    Product& made = *group.products.back();
    made.columns = columns, made.a_shared = !a, made.a_at = a_at, made.b_at = b_at;
    made.add = add, made.b_transposed = b_transposed, made.bfloat = bfloat;
    each_read(made, [](uint32_t at) { begin_read(at, 16, "wgmma", Proxy::async); });
  } else {
    const Product& first = *group.products[place];
    if (first.columns != columns || first.a_shared != !a || first.a_at != a_at || first.b_at != b_at ||
        first.add != add || first.b_transposed != b_transposed)
      fail("the threads of warpgroup %d issue different wgmma", current / GROUP);
    // All four warps have to know that the operands are there.
    if (current % WARP == 0) each_read(first, [](uint32_t at) { check_order(at, 16, "wgmma", Proxy::async); });
  }
  Lane& lane = group.products[place]->lanes[current % GROUP];
  std::copy(sums, sums + columns / 2, lane.sums);
  if (a) std::copy(a, a + 4, lane.a);
  const float* begin = *std::min_element(sums, sums + columns / 2);
  const float* end = *std::max_element(sums, sums + columns / 2) + 1;
  if (!mine.is_touched.empty())
    for (uint32_t word = stack_word(begin); word < stack_word(end); word++)
      if (mine.is_touched[word])
        fail("race: thread %d (warp %d) touched registers of a wgmma: no wgmma.fence lies between", current,
             current / WARP);
  auto& flying = mine.in_flight;
  if (!flying.empty() && flying.back().begin == begin && flying.back().end == end) flying.back().product = mine.issued;
  else flying.push_back({begin, end, mine.issued});
  mine.issued++;
}
void emu_wgmma_commit() {
  issuers[current].groups.push_back(issuers[current].issued);
  warpgroups[current / GROUP].committed++;
}
void emu_wgmma_wait(int groups) {
  Thread& mine = issuers[current];
  Warpgroup& group = warpgroups[current / GROUP];
  int until = -1;
  for (; (int)mine.groups.size() > groups; mine.groups.pop_front()) until = mine.groups.front();
  if (until < 0) return;
  int first = current / GROUP * GROUP;
  for (int thread = first; thread < first + GROUP; thread++)
    while (issuers[thread].issued < until) wait_for_change(group.committed, group.committed, "a wgmma of another warp");
  happen(group, until);
  learn(group.agent, until);
  auto over = [&](const Registers& each) { return each.product < until; };
  mine.in_flight.erase(std::remove_if(mine.in_flight.begin(), mine.in_flight.end(), over), mine.in_flight.end());
}
