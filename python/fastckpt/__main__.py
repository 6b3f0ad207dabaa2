"""`python -m fastckpt` is the `fastckpt` command."""

from fastckpt.cli import main

if __name__ == "__main__":
    main()
