"""Kernels for NVIDIA GPUs: tensor-core prefill by mma.sync (sm_80 and up) and by wgmma and TMA (sm_90a), and decode."""
