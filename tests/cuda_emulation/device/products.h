#pragma once
#include <cstdint>

namespace emu {

// A thread reads or writes what are its registers.
void touch_registers(const void* place, uint32_t size);

}  // namespace emu
