"""Schedule families of CPUs: prefill with queries in the vector lanes, decode with head columns there, a fallback for the rest."""
