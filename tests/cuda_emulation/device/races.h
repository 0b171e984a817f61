// Which accesses of shared memory are ordered, and which are a race.
//
// Every thread has a vector clock: what it knows of the others through barriers (Flanagan & Freund, "FastTrack", 2009).
// Every four bytes of shared memory remember their last write and the reads since. An access that does not know of an
// earlier one that it conflicts with is a race, whatever order this run happened to take. What runs asynchronously has
// begun at its instruction and ended at the wait for it; between the two, nobody else may touch what it touches.
#pragma once
#include <cstdint>

namespace emu {

// TMA and wgmma see what threads wrote only after a fence.proxy.async.
enum class Proxy { generic, async };

void start_clocks(int threads, uint32_t shared_bytes);
int new_agent();                               // hardware that acts besides the threads: TMA, tensor cores
uint32_t act(int agent);                       // its next action; gives the time
void learn(int agent, uint32_t time);          // the current thread knows what the agent did up to then

void read(uint32_t at, uint32_t size, const char* what);
void write(uint32_t at, uint32_t size, const char* what);
void check_order(uint32_t at, uint32_t size, const char* what, Proxy proxy = Proxy::generic);  // as `read`, and no more
void begin_read(uint32_t at, uint32_t size, const char* what, Proxy proxy);
void end_read(int agent, uint32_t at, uint32_t size);
void begin_write(uint32_t at, uint32_t size, const char* what, Proxy proxy);
void end_write(int agent, uint32_t at, uint32_t size);

// What was known to those who arrived at a barrier.
struct Knowledge {
  static constexpr int MOST = 640;
  uint32_t known[MOST] = {}, fenced[MOST] = {};
  void gather(int thread);  // and whatever the thread does from now on is later
  void gather(int agent, uint32_t time);
  void give(int thread) const;
  void clear();
};
void fence_proxy();  // what the current thread knows of, TMA and wgmma see too

}  // namespace emu
