"""ε of this package's accountant is never below the smallest one that holds, and close to Flower's."""

from __future__ import annotations

import pytest

from benchmarks.privacy.accountants import SETTINGS, Setting, flowers, numerical, ours


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_no_epsilon_is_smaller_than_what_holds(setting: Setting) -> None:
    """The numerical composition is by another library and another method, and shares no code with ours."""
    pytest.importorskip("prv_accountant")
    low, high = numerical(setting)

    assert low < high < ours(setting) < 1.3 * low


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_flowers_accountant_agrees(setting: Setting) -> None:
    """It also tries fractional orders, of which integers are never below the best."""
    spent = flowers(setting)

    assert spent <= ours(setting) < 1.06 * spent
