// Plain loads and stores: where -fsanitize=thread lets the generated code call.
#include "block.h"
#include "products.h"
#include "races.h"

namespace {

inline void access(void* place, uint32_t size, bool writes) {
  uintptr_t at = (uintptr_t)place - (uintptr_t)emu::shared;
  if (at < emu::SHARED_BYTES) {
    if (writes) emu::write(at, size, "store");
    else emu::read(at, size, "load");
  } else if (emu::own_stack(place)) {
    emu::touch_registers(place, size);
  }
}

}  // namespace

extern "C" {
#define EMU_ACCESSES(size)                                                      \
  void __tsan_read##size(void* p) { access(p, size, false); }                   \
  void __tsan_write##size(void* p) { access(p, size, true); }                   \
  void __tsan_unaligned_read##size(void* p) { access(p, size, false); }         \
  void __tsan_unaligned_write##size(void* p) { access(p, size, true); }
EMU_ACCESSES(1)
EMU_ACCESSES(2)
EMU_ACCESSES(4)
EMU_ACCESSES(8)
EMU_ACCESSES(16)
void __tsan_read_range(void* p, long size) { access(p, size, false); }
void __tsan_write_range(void* p, long size) { access(p, size, true); }
void __tsan_init() {}
}
