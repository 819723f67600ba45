"""`python -m benchmarks.learning`: see `benchmarks.learning.sweep`."""

from benchmarks.learning.sweep import main

if __name__ == "__main__":
    main()
