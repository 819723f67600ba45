"""The files of a CTranslate2 model in one or several folders, with weights in one file or in parts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from zo_common.errors import ConfigError, ModelNotFound

WEIGHTS = "model.bin"
_PART = re.compile(r"model\.bin\.part(\d+)")


class SourceFolders:
    """Folders that together hold one model, e.g. packages with a size limit.

    Raises:
        ConfigError: no folder is given.
    """

    def __init__(self, folders: Path | Sequence[Path]) -> None:
        self._folders = (folders,) if isinstance(folders, Path) else tuple(folders)
        if not self._folders:
            raise ConfigError("no source folder is named, expected at least one: name the folder of a model.bin")

    def __str__(self) -> str:
        return " + ".join(f"'{folder}'" for folder in self._folders)

    def file(self, name: str) -> Path:
        """Return the path of a file by name; if it does not exist, its path in the last folder.

        Raises:
            ConfigError: several folders have it.
        """
        found = [folder / name for folder in self._folders if (folder / name).is_file()]
        if len(found) > 1:
            raise ConfigError(f"'{found[0]}' and '{found[1]}' are both there, expected one: name one model's folders")
        return found[0] if found else self._folders[-1] / name

    def weights(self) -> tuple[Path, ...]:
        """`model.bin`, or `model.bin.part1`, `model.bin.part2` … in the order of their numbers, from 0 or 1.

        Raises:
            ConfigError: both exist, or a part exists twice.
            ModelNotFound: neither is there, or a part is missing.
        """
        parts: dict[int, Path] = {}
        for path in (path for folder in self._folders if folder.is_dir() for path in sorted(folder.iterdir())):
            if match := _PART.fullmatch(path.name):
                other = parts.setdefault(int(match[1]), path)
                if other != path:
                    raise ConfigError(f"'{other}' and '{path}' are the same part: name the folders of one model")
        whole = self.file(WEIGHTS)
        if not parts:
            return (whole,)
        if whole.is_file():
            raise ConfigError(f"'{whole}' and '{min(parts.values())}' are both there, expected one: delete the other")
        first = min(parts)
        missing = sorted(set(range(min(first, 1), max(parts) + 1)) - set(parts))
        if missing:
            raise ModelNotFound(
                f"{self} has {len(parts)} parts of {WEIGHTS}, but no part {missing[0]}: name its folder as well"
            )
        return tuple(parts[number] for number in sorted(parts))
