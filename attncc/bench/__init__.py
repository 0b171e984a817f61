"""Measurement: the roofline of the machine (`peak`), interleaved timing (`timing`), and attention side by side with
other ways to compute it (`cases`, `contenders`, `run`)."""
