"""Benchmarks of DESIGN's performance budget; see README.md in this folder."""
