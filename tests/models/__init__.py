"""Tests of cclm/models."""
