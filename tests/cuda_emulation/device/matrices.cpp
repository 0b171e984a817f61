// ldmatrix, stmatrix and mma.sync: the last lane to arrive does the work of the warp.
#include "matrices.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "block.h"
#include "emulated.h"
#include "races.h"

namespace emu {

float widened(uint16_t bits, bool bfloat) {
  if (bfloat) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
  }
  static const std::vector<float> table = [] {
    std::vector<float> made(1 << 16);
    for (int n = 0; n < 1 << 16; n++) {
      int exponent = n >> 10 & 31, fraction = n & 1023;
      float size = exponent == 31 ? (fraction ? NAN : INFINITY)
                   : exponent     ? std::ldexp(1024.0f + fraction, exponent - 25)
                                  : std::ldexp((float)fraction, -24);
      made[n] = n >> 15 ? -size : size;
    }
    return made;
  }();
  return table[bits];
}

namespace {

struct Rows {
  uint32_t place, *to[4], from[4];
};
struct Operands {
  float* to[4];
  uint32_t a[4], b[2];
  float c[4];
};
Rows rows[MOST_WARPS][WARP];
Operands operands[MOST_WARPS][WARP];

void multiply(Operands* lanes, bool bfloat) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < WARP; lane++)
    for (int n = 0; n < 2; n++) {
      for (int part = 0; part < 4; part++)
        a[lane / 4 + part % 2 * 8][lane % 4 * 2 + n + part / 2 * 8] = widened(lanes[lane].a[part], n, bfloat);
      for (int part = 0; part < 2; part++)
        b[lane % 4 * 2 + n + part * 8][lane / 4] = widened(lanes[lane].b[part], n, bfloat);
    }
  for (int lane = 0; lane < WARP; lane++)
    for (int n = 0; n < 4; n++) {
      int row = lane / 4 + n / 2 * 8, column = lane % 4 * 2 + n % 2;
      float sum = lanes[lane].c[n];
      for (int k = 0; k < 16; k++) sum += a[row][k] * b[k][column];
      *lanes[lane].to[n] = sum;
    }
}

}  // namespace
}  // namespace emu

using namespace emu;

void emu_load_matrix(uint32_t** to, int count, uint32_t place, bool transposed) {
  int lane = current % WARP;
  if (lane < count * 8) read(place, 16, "ldmatrix");
  Rows* mine = rows[current / WARP];
  mine[lane].place = place;
  for (int m = 0; m < count; m++) mine[lane].to[m] = to[m];
  auto load = [=] {
    for (int lane = 0; lane < WARP; lane++)
      for (int m = 0; m < count; m++) {
        uint16_t halves[2];
        for (int n = 0; n < 2; n++) {
          int row = transposed ? lane % 4 * 2 + n : lane / 4, column = transposed ? lane / 4 : lane % 4 * 2 + n;
          memcpy(&halves[n], emu::shared + mine[m * 8 + row].place + column * 2, 2);
        }
        *mine[lane].to[m] = halves[0] | (uint32_t)halves[1] << 16;
      }
  };
  together(load, "ldmatrix");
}
void emu_store_matrix(uint32_t place, const uint32_t* from, int count) {
  int lane = current % WARP;
  if (lane < count * 8) write(place, 16, "stmatrix");
  Rows* mine = rows[current / WARP];
  mine[lane].place = place;
  for (int m = 0; m < count; m++) mine[lane].from[m] = from[m];
  auto store = [=] {
    for (int lane = 0; lane < WARP; lane++)
      for (int m = 0; m < count; m++)
        memcpy(emu::shared + mine[m * 8 + lane / 4].place + lane % 4 * 4, &mine[lane].from[m], 4);
  };
  together(store, "stmatrix");
}
void emu_mma(float** to, const uint32_t* a, const uint32_t* b, const float* c, bool bfloat) {
  Operands* lanes = operands[current / WARP];
  Operands& mine = lanes[current % WARP];
  for (int n = 0; n < 4; n++) mine.to[n] = to[n], mine.a[n] = a[n], mine.c[n] = c[n];
  for (int n = 0; n < 2; n++) mine.b[n] = b[n];
  together([=] { multiply(lanes, bfloat); }, "mma.sync");
}
