"""``python -m kubevox.cli``: the same as ``kubevox``."""

from kubevox.cli import main

if __name__ == "__main__":
    main()
