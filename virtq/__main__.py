"""`python -m virtq` is the command `virtq`."""

from virtq.cli import main

if __name__ == "__main__":
    main()
