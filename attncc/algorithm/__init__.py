"""From an AttentionSpec to unscheduled S-TIR: what is computed, in blocks small enough for schedules to move.

Nothing here knows lanes, threads or torch. Importing a module of this folder imports TVM.
"""
