// A CUDA thread block on a CPU, for the code that TVM generates: one fiber a thread, which gives way at every barrier,
// shuffle, ldmatrix and mma. Shared memory starts as 0x7f bytes, so that what was never written shows as NaN.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math_constants.h>
#include <ucontext.h>

#define __int_as_float emu_float_of  // what CUDA's infinity is made of
#define __longlong_as_double emu_double_of

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
static float emu_float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
static double emu_double_of(uint64_t bits) {
  double value;
  memcpy(&value, &bits, 8);
  return value;
}
using std::max;
using std::min;
#define uint unsigned int
#define uchar unsigned char
#define ushort unsigned short

struct Index3 { int x, y, z; };
static Index3 threadIdx, blockIdx;
alignas(1024) static uchar emu_shared[256 * 1024];

static ucontext_t scheduler;
static std::vector<ucontext_t> fibers;
static std::vector<char> finished;
static int current, n_threads, block_count, block_round;
static int warp_count[32], warp_round[32];
static uint32_t slots[32][32][12];

static void give_way() {
  int me = current;
  swapcontext(&fibers[me], &scheduler);
  current = me;
  threadIdx.x = me;
}
static void emu_warp_sync() {
  int warp = current / 32, round = warp_round[warp];
  if (++warp_count[warp] == 32) { warp_count[warp] = 0; warp_round[warp]++; }
  else while (warp_round[warp] == round) give_way();
}
static void emu_block_sync() {
  int round = block_round;
  if (++block_count == n_threads) { block_count = 0; block_round++; }
  else while (block_round == round) give_way();
}
template <class T> static T emu_shuffle(T value, int source) {
  auto& mine = slots[current / 32];
  memcpy(mine[current % 32], &value, sizeof(T));
  emu_warp_sync();
  T result;
  memcpy(&result, mine[source & 31], sizeof(T));
  emu_warp_sync();
  return result;
}
#define __shfl_sync(mask, value, source, width) emu_shuffle(value, source)
#define __shfl_xor_sync(mask, value, by, width) emu_shuffle(value, (current % 32) ^ (by))

static uint32_t emu_shared_address(const void* p) { return (uint32_t)((const uchar*)p - emu_shared); }

static void emu_load_matrix(uint32_t** to, int count, uint32_t place, bool transposed) {
  int lane = current % 32;
  auto& mine = slots[current / 32];
  mine[lane][0] = place;
  emu_warp_sync();
  for (int m = 0; m < count; m++) {
    uint16_t low, high;
    if (transposed) {
      memcpy(&low, emu_shared + mine[m * 8 + 2 * (lane % 4)][0] + lane / 4 * 2, 2);
      memcpy(&high, emu_shared + mine[m * 8 + 2 * (lane % 4) + 1][0] + lane / 4 * 2, 2);
    } else {
      memcpy(&low, emu_shared + mine[m * 8 + lane / 4][0] + lane % 4 * 4, 2);
      memcpy(&high, emu_shared + mine[m * 8 + lane / 4][0] + lane % 4 * 4 + 2, 2);
    }
    *to[m] = low | (uint32_t)high << 16;
  }
  emu_warp_sync();
}
static float emu_widened(uint16_t bits, bool bfloat) {
  if (bfloat) { uint32_t wide = (uint32_t)bits << 16; float value; memcpy(&value, &wide, 4); return value; }
  __half value;
  memcpy(&value, &bits, 2);
  return __half2float(value);
}
static void emu_mma(float* to[4], const uint32_t a[4], const uint32_t b[2], const float c[4], bool bfloat) {
  int lane = current % 32;
  auto& mine = slots[current / 32];
  for (int n = 0; n < 4; n++) mine[lane][n] = a[n];
  for (int n = 0; n < 2; n++) mine[lane][4 + n] = b[n];
  emu_warp_sync();
  float sums[4];
  for (int n = 0; n < 4; n++) {
    int row = lane / 4 + n / 2 * 8, column = lane % 4 * 2 + n % 2;
    sums[n] = c[n];
    for (int k = 0; k < 16; k++) {
      uint32_t left = mine[row % 8 * 4 + k % 8 / 2][row / 8 + 2 * (k / 8)], right = mine[column * 4 + k % 8 / 2][4 + k / 8];
      int shift = k % 2 * 16;
      sums[n] += emu_widened(left >> shift & 0xffff, bfloat) * emu_widened(right >> shift & 0xffff, bfloat);
    }
  }
  emu_warp_sync();
  for (int n = 0; n < 4; n++) *to[n] = sums[n];
}
static void emu_copy(uint32_t to, const void* from, int size, int width) {
  memset(emu_shared + to, 0, width);
  memcpy(emu_shared + to, from, size);
}
template <class Kernel> static void emu_launch(Kernel kernel, int gx, int gy, int gz, int threads) {
  static Kernel* body;
  static std::vector<std::vector<char>> stacks;
  body = &kernel;
  n_threads = threads;
  fibers.resize(threads);
  stacks.resize(threads);
  for (auto& stack : stacks) stack.resize(256 << 10);
  for (int z = 0; z < gz; z++) for (int y = 0; y < gy; y++) for (int x = 0; x < gx; x++) {
    blockIdx = {x, y, z};
    memset(emu_shared, 0x7f, sizeof emu_shared);
    block_count = 0;
    memset(warp_count, 0, sizeof warp_count);
    finished.assign(threads, 0);
    for (int t = 0; t < threads; t++) {
      getcontext(&fibers[t]);
      fibers[t].uc_stack.ss_sp = stacks[t].data();
      fibers[t].uc_stack.ss_size = stacks[t].size();
      fibers[t].uc_link = &scheduler;
      makecontext(&fibers[t], (void (*)())(+[]() { (*body)(); finished[current] = 1; }), 0);
    }
    for (int left = threads; left;)
      for (int t = 0; t < threads; t++)
        if (!finished[t]) {
          current = t;
          threadIdx = {t, 0, 0};
          swapcontext(&scheduler, &fibers[t]);
          left -= finished[t];
        }
  }
}
