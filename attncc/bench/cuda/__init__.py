"""`attncc bench --device cuda`: attention on a GPU, checked against float64 and timed beside SDPA and FlexAttention."""
