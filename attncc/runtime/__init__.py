"""What happens when an attention is called: the torch operator, dispatch by sizes, kernel cache, launch, statistics.

`op` → `dispatch` → `build` (→ `cache`, `native`) and `launcher`; `eager` is the same attention by torch's operators.
"""
