"""Tests of cclm/pivot."""
