"""Checks and measures everything on a machine with a GPU or TPU; see benchmarks/README.md."""
