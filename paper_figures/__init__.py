"""Figures, drawn from results files. Draw one with `python -m paper_figures NAME`."""
