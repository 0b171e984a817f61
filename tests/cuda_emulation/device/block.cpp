#include "block.h"

#include <csetjmp>
#include <cstdarg>
#include <cstring>
#include <memory>
#include <ucontext.h>
#include <vector>

#include "emulated.h"
#include "races.h"

Index3 threadIdx, blockIdx;

namespace emu {

alignas(1024) unsigned char shared[SHARED_BYTES];
int current, threads;
Meeting meetings[MOST_WARPS];

namespace {

struct Fiber {
  std::unique_ptr<char[]> stack;
  ucontext_t start;
  jmp_buf place;
  bool started, finished;
  const Round* round;  // that it waits for a change of
  Round seen;
  const char* what;
};

Fiber fibers[MOST_THREADS];
jmp_buf scheduler;
char message[512];
void (*body)(void*);
void* argument;

[[noreturn]] void run_thread() {
  body(argument);
  end_copies();
  end_transfers();
  end_products();
  fibers[current].finished = true;
  _longjmp(scheduler, 1);
}
void resume(int thread) {
  Fiber& fiber = fibers[thread];
  current = thread;
  threadIdx = {thread, 0, 0};
  fiber.round = nullptr;
  if (_setjmp(scheduler)) return;
  if (fiber.started) _longjmp(fiber.place, 1);
  fiber.started = true;
  setcontext(&fiber.start);
}
bool can_go_on(const Fiber& fiber) { return !fiber.finished && (!fiber.round || *fiber.round != fiber.seen); }

void run_block() {
  memset(shared, 0x7f, sizeof shared);  // NaN in every format
  memset(meetings, 0, sizeof meetings);
  start_copies();
  start_barriers();
  start_transfers();
  start_products();
  for (int t = 0; t < threads; t++) {
    Fiber& fiber = fibers[t];
    if (!fiber.stack) fiber.stack.reset(new char[STACK_BYTES]);
    fiber.started = fiber.finished = false;
    fiber.round = nullptr;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = STACK_BYTES;
    makecontext(&fiber.start, run_thread, 0);
  }
  for (int left = threads; left;) {
    bool moved = false;
    for (int t = 0; t < threads; t++) {
      if (!can_go_on(fibers[t])) continue;
      moved = true;
      resume(t);
      if (*message) return;
      left -= fibers[t].finished;
    }
    if (moved || let_a_transfer_arrive()) continue;
    int stuck = 0;
    while (fibers[stuck].finished) stuck++;
    snprintf(message, sizeof message, "deadlock: %d threads wait, thread %d (warp %d) at %s", left, stuck, stuck / WARP,
             fibers[stuck].what);
    return;
  }
}

}  // namespace

void fail(const char* format, ...) {
  va_list values;
  va_start(values, format);
  vsnprintf(message, sizeof message, format, values);
  va_end(values);
  _longjmp(scheduler, 1);
}
void wait_for_change(const Round& round, Round seen, const char* what) {
  int me = current;
  Fiber& fiber = fibers[me];
  fiber.round = &round, fiber.seen = seen, fiber.what = what;
  if (!_setjmp(fiber.place)) _longjmp(scheduler, 1);
}
bool own_stack(const void* place) {
  const char* stack = fibers[current].stack.get();
  return place >= stack && place < stack + STACK_BYTES;
}
uint32_t stack_word(const void* place) { return ((const char*)place - fibers[current].stack.get()) / 4; }

}  // namespace emu

const char* emu_launch(void (*body)(void*), void* argument, int gx, int gy, int gz, int threads, int shared_bytes) {
  using namespace emu;
  *message = 0;
  emu::body = body, emu::argument = argument, emu::threads = threads;
  for (int z = 0; z < gz; z++)
    for (int y = 0; y < gy; y++)
      for (int x = 0; x < gx; x++) {
        blockIdx = {x, y, z};
        start_clocks(threads, shared_bytes);
        run_block();
        if (*message) {
          size_t length = strlen(message);
          snprintf(message + length, sizeof message - length, " [block %d, %d, %d]", x, y, z);
          return message;
        }
      }
  return nullptr;
}
unsigned char* emu_shared_memory() { return emu::shared; }
uint32_t emu_shared_address(const void* p) { return (const unsigned char*)p - emu::shared; }
