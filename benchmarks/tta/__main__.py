"""`python -m benchmarks.tta`: see `benchmarks.tta.table`."""

from benchmarks.tta.table import main

if __name__ == "__main__":
    main()
