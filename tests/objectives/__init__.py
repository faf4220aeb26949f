"""Tests of cclm/objectives."""
