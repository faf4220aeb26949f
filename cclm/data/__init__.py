"""Shards, streams and batches; the only place that knows the WebDataset format."""
