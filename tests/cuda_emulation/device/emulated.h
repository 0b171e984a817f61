// What the device code that TVM generates sees of the emulation, in the place of CUDA's device runtime.
//
// It is compiled with -fsanitize=thread, whose calls at every load and store lead to `accesses.cpp`; the emulation
// itself is not.
#pragma once
#include <cstdint>

struct Index3 { int x, y, z; };
extern Index3 threadIdx, blockIdx;
struct alignas(64) CUtensorMap {  // as `cuda_emulation.driver` writes it: sizes in elements of two bytes, strides in bytes
  uint64_t address, sizes[5], strides[4];
  uint32_t box[5], rank;
  uint32_t rest[6];
};

// The kernel over a grid of blocks. Gives a message where something was wrong, else null.
const char* emu_launch(void (*body)(void*), void* argument, int gx, int gy, int gz, int threads, int shared_bytes);

unsigned char* emu_shared_memory();
uint32_t emu_shared_address(const void* p);

// Barriers.
void emu_block_sync();
void emu_warp_sync();
void emu_named_barrier(uint32_t number, uint32_t count, bool waits);
uint32_t emu_elect();
void emu_shuffle(void* value, int size, int source);

// sm_80: asynchronous copies, matrices, products.
void emu_copy(uint32_t to, const void* from, int size, int width);
void emu_copy_commit();
void emu_copy_wait(int groups);
void emu_load_matrix(uint32_t** to, int count, uint32_t place, bool transposed);
void emu_store_matrix(uint32_t place, const uint32_t* from, int count);
void emu_mma(float** to, const uint32_t* a, const uint32_t* b, const float* c, bool bfloat);

// sm_90: mbarrier, TMA, wgmma.
void emu_fence_proxy();
void emu_mbarrier_init(uint32_t at, uint32_t count);
void emu_mbarrier_arrive(uint32_t at, uint32_t count);
void emu_mbarrier_expect(uint32_t at, uint32_t bytes);
void emu_mbarrier_wait(uint32_t at, int parity);
void emu_tensor_load(uint32_t to, const void* map, const int* at, uint32_t barrier);
void emu_tensor_store(const void* map, const int* at, uint32_t from);
void emu_bulk_commit();
void emu_bulk_wait(int groups);
void emu_wgmma_fence();
void emu_wgmma(float** sums, int columns, const uint32_t* a, uint64_t a_at, uint64_t b_at, bool add, bool b_transposed,
               bool bfloat);
void emu_wgmma_commit();
void emu_wgmma_wait(int groups);
