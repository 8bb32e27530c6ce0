"""What `python -m experiments bench NAME` measures, a module each."""
