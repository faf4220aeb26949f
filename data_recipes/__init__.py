"""Raw datasets -> records: one dataset per file."""
