"""Schedule families of CPUs.

Prefill has queries in the vector lanes, decode head columns; a fallback takes the rest.
"""
