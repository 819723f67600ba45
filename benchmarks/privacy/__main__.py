"""`python -m benchmarks.privacy`: see `benchmarks.privacy.table`."""

from benchmarks.privacy.table import main

if __name__ == "__main__":
    main()
