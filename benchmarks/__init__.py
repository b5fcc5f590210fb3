"""Benchmarks. Run each module from the repository root, for example `python -m benchmarks.operator`."""
