// All of the emulation as one translation unit, which compiles faster than its parts.
#include "accesses.cpp"
#include "barriers.cpp"
#include "block.cpp"
#include "copies.cpp"
#include "matrices.cpp"
#include "products.cpp"
#include "races.cpp"
#include "transfers.cpp"
