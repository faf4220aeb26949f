"""Models of other makes and our own, as `cclm/evaluation/embedder.py` wants them; `open.py` tells which is which."""
