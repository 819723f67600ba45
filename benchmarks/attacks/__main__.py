"""`python -m benchmarks.attacks`: see `benchmarks.attacks.table`."""

from benchmarks.attacks.table import main

if __name__ == "__main__":
    main()
