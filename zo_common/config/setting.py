"""The metadata of a run setting: its meaning, its values, and what depends on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, field, fields
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Resume = Literal["fixed", "free"]
Bound = Literal["", "at least 1", "at least 0", "above 0", "0 … 1", "0 … 4096"]
T = TypeVar("T")
_KEY = "setting"
_KINDS = {int: "whole number", float: "number", str: "text"}


@dataclass(frozen=True)
class About:
    """The metadata of one field.

    Attributes:
        doc: one sentence with the unit.
        resume: whether a resumed run may change the setting.
        engine: whether a device's loaded engine depends on it.
        bound: the range that is checked.
        app_default: the default of `flwr run`, if it differs from the field's.
        quiet: whether a resumed run may change it without a message, as it concerns one start or one machine.
        path: whether it may name a file or folder, in which a leading ~ is expanded.
    """

    doc: str
    resume: Resume
    engine: bool = False
    bound: Bound = ""
    app_default: Any = None
    quiet: bool = False
    path: bool = False


def setting(
    default: T,
    doc: str,
    resume: Resume,
    *,
    engine: bool = False,
    bound: Bound = "",
    app_default: T | None = None,
    quiet: bool = False,
    path: bool = False,
) -> T:
    """Return a documented dataclass field; see `About` for the arguments."""
    return field(default=default, metadata={_KEY: About(doc, resume, engine, bound, app_default, quiet, path)})


@dataclass(frozen=True)
class Setting:
    """One run setting, from its field and metadata.

    Attributes:
        name: the field's name; `key` is the name that users write.
        section: the section that it belongs to, such as "method".
        kind: the field's type.
    """

    name: str
    section: str
    kind: Any
    default: Any
    about: About

    @property
    def key(self) -> str:
        """The kebab-case name."""
        return kebab(self.name)

    @property
    def fixed(self) -> bool:
        """Whether a resumed run is refused with another value."""
        return self.about.resume == "fixed"

    @property
    def app_default(self) -> Any:
        """The default of `flwr run`."""
        return self.default if self.about.app_default is None else self.about.app_default

    @property
    def choices(self) -> tuple[str, ...]:
        """All values of a setting with a fixed set of values; empty for any other."""
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    @property
    def values(self) -> str:
        """The allowed values, as text for documentation."""
        if self.choices:
            return ", ".join(self.choices)
        if self.kind is bool:
            return "true, false"
        words: list[str] = []
        for kind in get_args(self.kind) if get_origin(self.kind) in (Union, UnionType) else (self.kind,):
            if get_origin(kind) is Literal:
                words.extend(get_args(kind))
            else:
                words.append(f"{_KINDS[kind]} {self.about.bound}".rstrip())
        return " or ".join(words)


def kebab(name: str) -> str:
    """`num_queries` → `num-queries`."""
    return name.replace("_", "-")


def section_of(cls: type) -> str:
    """Return the name of a section's class in lower case: `MethodSection` → "method"."""
    return cls.__name__.removesuffix("Section").lower()


def settings_of(cls: type) -> Iterator[Setting]:
    """Yield all settings of a dataclass whose fields are made by `setting`, in the order of its sections."""
    hints = get_type_hints(cls)
    owners = {
        name: section_of(base) for base in reversed(cls.__mro__) for name in vars(base).get("__annotations__", ())
    }
    for each in fields(cls):
        yield Setting(each.name, owners[each.name], hints[each.name], _default(each), each.metadata[_KEY])


def _default(each: Field[Any]) -> Any:
    assert each.default is not MISSING, f"{each.name} has no default"
    return each.default
