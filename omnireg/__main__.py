"""``python -m omnireg`` is the command line."""

from omnireg.cli import console

if __name__ == "__main__":
    console()
