"""Tests of cclm/training."""
