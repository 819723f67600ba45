"""Small modules to adapt."""

from __future__ import annotations

from method_fixtures import module_of, small_model, weight_bytes  # noqa: F401
