"""The tiny federation's fixtures, for attacks on it."""

from fixtures import *  # noqa: F403
