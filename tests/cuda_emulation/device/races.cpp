#include "races.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "block.h"

namespace emu {
namespace {

constexpr int GRAIN = 4;  // bytes that share a history
constexpr uint32_t TIME_BITS = 22;

struct Event { uint32_t agent, time; };
uint32_t packed(Event e) { return e.agent << TIME_BITS | e.time; }
Event unpacked(uint32_t e) { return {e >> TIME_BITS, e & ((1u << TIME_BITS) - 1)}; }

struct Cell {
  uint32_t written = 0;
  bool by_thread = true;  // and not by TMA
  int being_read = 0, by = 0;
  const char *writer = nullptr, *reader = nullptr, *being_written = nullptr;
  std::vector<uint32_t> reads;  // those that no later read knows of
};

std::vector<Cell> cells(SHARED_BYTES / GRAIN);
Knowledge knowledge[MOST_THREADS];
uint32_t agent_times[Knowledge::MOST];
int agents, first_agent;
uint32_t limit, touched;

const char* named(int agent) {
  static char text[2][64];
  static int turn;
  char* to = text[turn ^= 1];
  if (agent < first_agent) snprintf(to, sizeof text[0], "thread %d (warp %d)", agent, agent / 32);
  else snprintf(to, sizeof text[0], "the hardware");
  return to;
}
bool knows(uint32_t event) {
  Event e = unpacked(event);
  return e.time <= knowledge[current].known[e.agent];
}
uint32_t now(int agent) {
  return packed({(uint32_t)agent, agent < first_agent ? knowledge[agent].known[agent] : agent_times[agent]});
}
void check_last_write(const Cell& cell, uint32_t at, const char* what, const char* does, Proxy proxy) {
  if (cell.being_written)
    fail("race: %s %s byte %u of shared memory (%s) while the %s of %s is under way: no wait lies between",
         named(current), does, at, what, cell.being_written, named(cell.by));
  if (!cell.written) return;
  int by = unpacked(cell.written).agent;
  if (!knows(cell.written))
    fail("race: %s %s byte %u of shared memory (%s), which the %s of %s wrote: no barrier lies between",
         named(current), does, at, what, cell.writer, named(by));
  if (proxy == Proxy::async && cell.by_thread && unpacked(cell.written).time > knowledge[current].fenced[by])
    fail("race: the %s of %s meets byte %u of shared memory, which the %s of %s wrote: no fence.proxy.async lies between",
         what, named(current), at, cell.writer, named(by));
}
void check_read(Cell& cell, uint32_t at, const char* what, Proxy proxy) {
  check_last_write(cell, at, what, "reads", proxy);
}
void check_write(Cell& cell, uint32_t at, const char* what, Proxy proxy) {
  check_last_write(cell, at, what, "writes", proxy);
  if (cell.being_read)
    fail("race: %s writes byte %u of shared memory (%s) while the %s of %s may still read it: no wait lies between",
         named(current), at, what, cell.reader, named(cell.by));
  for (uint32_t event : cell.reads)
    if (!knows(event))
      fail("race: %s writes byte %u of shared memory (%s), which the %s of %s reads: no barrier lies between",
           named(current), at, what, cell.reader, named(unpacked(event).agent));
}
void add_read(Cell& cell, int agent, const char* what) {
  uint32_t event = now(agent);
  auto& reads = cell.reads;
  if (!reads.empty() && reads.back() == event) return;
  const uint32_t* known = agent < first_agent ? knowledge[agent].known : nullptr;
  size_t kept = 0;
  for (uint32_t old : reads) {
    Event e = unpacked(old);
    if (e.agent != (uint32_t)agent && !(known && e.time <= known[e.agent])) reads[kept++] = old;
  }
  reads.resize(kept);
  reads.push_back(event);
  cell.reader = what;
}
template <class Visit> void each(uint32_t at, uint32_t size, Visit visit) {
  if (at + size > limit)
    fail("byte %u of shared memory is touched, and the kernel was started with %u", at + size - 1, limit);
  touched = std::max(touched, at + size);
  for (uint32_t n = at / GRAIN; n <= (at + size - 1) / GRAIN; n++) visit(cells[n], n * GRAIN);
}

}  // namespace

void start_clocks(int threads, uint32_t shared_bytes) {
  for (uint32_t n = 0; n < (touched + GRAIN - 1) / GRAIN; n++) {
    std::vector<uint32_t> kept = std::move(cells[n].reads);  // its memory
    kept.clear();
    cells[n] = Cell();
    cells[n].reads = std::move(kept);
  }
  touched = 0;
  limit = shared_bytes;
  agents = first_agent = threads;
  memset(agent_times, 0, sizeof agent_times);
  for (int t = 0; t < threads; t++) {
    knowledge[t].clear();
    knowledge[t].known[t] = 1;
  }
}
int new_agent() {
  if (agents == Knowledge::MOST) fail("more barriers than the emulation has room for");
  return agents++;
}
uint32_t act(int agent) { return ++agent_times[agent]; }
void learn(int agent, uint32_t time) {
  uint32_t& known = knowledge[current].known[agent];
  known = std::max(known, time);
}

void check_order(uint32_t at, uint32_t size, const char* what, Proxy proxy) {
  each(at, size, [&](Cell& cell, uint32_t place) { check_read(cell, place, what, proxy); });
}
void read(uint32_t at, uint32_t size, const char* what) {
  each(at, size, [&](Cell& cell, uint32_t place) {
    check_read(cell, place, what, Proxy::generic);
    add_read(cell, current, what);
  });
}
void write(uint32_t at, uint32_t size, const char* what) {
  each(at, size, [&](Cell& cell, uint32_t place) {
    check_write(cell, place, what, Proxy::generic);
    cell.written = now(current), cell.writer = what, cell.by_thread = true;
    cell.reads.clear();
  });
}
void begin_read(uint32_t at, uint32_t size, const char* what, Proxy proxy) {
  each(at, size, [&](Cell& cell, uint32_t place) {
    check_read(cell, place, what, proxy);
    cell.being_read++, cell.by = current, cell.reader = what;
  });
}
void end_read(int agent, uint32_t at, uint32_t size) {
  each(at, size, [&](Cell& cell, uint32_t) {
    cell.being_read--;
    add_read(cell, agent, cell.reader);
  });
}
void begin_write(uint32_t at, uint32_t size, const char* what, Proxy proxy) {
  each(at, size, [&](Cell& cell, uint32_t place) {
    check_write(cell, place, what, proxy);
    cell.being_written = what, cell.by = current, cell.by_thread = proxy == Proxy::generic;
  });
}
void end_write(int agent, uint32_t at, uint32_t size) {
  each(at, size, [&](Cell& cell, uint32_t) {
    cell.written = now(agent), cell.writer = cell.being_written, cell.being_written = nullptr;
    cell.reads.clear();
  });
}

void Knowledge::gather(int thread) {
  Knowledge& own = knowledge[thread];
  for (int n = 0; n < agents; n++) known[n] = std::max(known[n], own.known[n]);
  for (int n = 0; n < agents; n++) fenced[n] = std::max(fenced[n], own.fenced[n]);
  own.known[thread]++;
}
void Knowledge::give(int thread) const {
  Knowledge& own = knowledge[thread];
  for (int n = 0; n < agents; n++) own.known[n] = std::max(known[n], own.known[n]);
  for (int n = 0; n < agents; n++) own.fenced[n] = std::max(fenced[n], own.fenced[n]);
}
void Knowledge::gather(int agent, uint32_t time) { known[agent] = std::max(known[agent], time); }
void Knowledge::clear() { memset(this, 0, sizeof *this); }
void fence_proxy() {
  Knowledge& own = knowledge[current];
  memcpy(own.fenced, own.known, sizeof own.known);
  own.known[current]++;
}

}  // namespace emu
