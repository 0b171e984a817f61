// A thread block on a CPU: one fiber a thread, which gives way where it waits for others.
#pragma once
#include <cstdint>
#include <cstdio>

namespace emu {

constexpr int WARP = 32, MOST_THREADS = 512, MOST_WARPS = MOST_THREADS / WARP;
constexpr uint32_t SHARED_BYTES = 256 << 10;
alignas(1024) extern unsigned char shared[SHARED_BYTES];
extern int current, threads;  // the thread that runs, and how many there are

// Ends the launch with a message. Nothing of the block runs on.
[[noreturn, gnu::format(printf, 1, 2)]] void fail(const char* format, ...);

// Counts what others wait for: rounds of a barrier, products of a warpgroup.
using Round = int;
void wait_for_change(const Round& round, Round seen, const char* what);

struct Meeting { int count; Round round; };
extern Meeting meetings[MOST_WARPS];
// Runs `work` once the other lanes of the warp are here too; the last to come does it for all.
template <class Work> void together(Work work, const char* what) {
  Meeting& here = meetings[current / WARP];
  if (++here.count == WARP) {
    here.count = 0;
    work();
    here.round++;
  } else {
    wait_for_change(here.round, here.round, what);
  }
}

// What the parts of the emulation do when a block starts; when a thread ends; and when no thread can go on, where they
// let one thing happen that is under way. Gives whether there was one.
void start_copies();
void start_barriers();
void start_transfers();
void start_products();
void end_copies();
void end_transfers();
void end_products();
bool let_a_transfer_arrive();

// Memory of the current thread's stack, which holds what are registers on a GPU.
bool own_stack(const void* place);
uint32_t stack_word(const void* place);
constexpr uint32_t STACK_BYTES = 256 << 10;

}  // namespace emu
