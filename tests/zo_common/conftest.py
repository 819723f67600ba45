"""Fixtures of the method's tests."""

from __future__ import annotations

from method_fixtures import *  # noqa: F403
