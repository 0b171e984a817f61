"""Attention on CUDA tensors: kernels of `attncc.schedules.cuda`, built, kept and started on torch's streams.

Nothing here is imported before the first call on a CUDA tensor.
"""
