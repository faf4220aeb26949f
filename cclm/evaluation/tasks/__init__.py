"""Every task is one declarative file here; see `cclm/evaluation/task.py` for what it declares."""
