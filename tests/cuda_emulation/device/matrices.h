// 16-bit floats and swizzled rows.
#pragma once
#include <cstdint>

namespace emu {

float widened(uint16_t bits, bool bfloat);
inline float widened(uint32_t pair, int which, bool bfloat) { return widened((uint16_t)(pair >> which * 16), bfloat); }
constexpr uint32_t ROW = 128;  // bytes of a swizzled row
// The 128-byte swizzle of TMA and wgmma: chunks of 16 bytes are permuted by the address of their row of 128.
inline uint32_t swizzled(uint32_t at) { return at ^ ((at >> 7 & 7) << 4); }

}  // namespace emu
