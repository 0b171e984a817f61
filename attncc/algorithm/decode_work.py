"""What decode's kernels and their work tables agree on. Known without TVM, as a launch is."""

FRACTION_BITS = 20
"""Keys of a tile are given in units of 2^-FRACTION_BITS of all keys that the mask leaves."""
