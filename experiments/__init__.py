"""Experiments: each trains, and writes a results file. Run one with `python -m experiments NAME`."""
