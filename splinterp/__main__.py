"""`python -m splinterp`."""

from splinterp.pipeline.commands import main

if __name__ == "__main__":
    main()
