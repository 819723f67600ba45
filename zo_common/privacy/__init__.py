"""Differential privacy: the mechanism, its accountant and what a run has spent."""

from typing import TYPE_CHECKING

from zo_common.lazy import lazy_names

if TYPE_CHECKING:
    from zo_common.privacy.accountant import epsilon_spent, noise_for
    from zo_common.privacy.mechanism import PrivacySettings
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "PrivacySettings": "zo_common.privacy.mechanism",
            "epsilon_spent": "zo_common.privacy.accountant",
            "noise_for": "zo_common.privacy.accountant",
        },
    )

__all__ = [
    "PrivacySettings",
    "epsilon_spent",
    "noise_for",
]
