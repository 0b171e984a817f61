"""Tuning: searching a kernel's decisions on a machine, the database of what was found, and choosing from it.

`bucket` and `record` say what is kept, `database` keeps it, `choose` is what the runtime asks.
"""
