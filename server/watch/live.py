"""A run that is looked at again and again, for any number of pages."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

from server.run.log_file import RUN_LOG
from server.watch.log_tail import LogTail
from server.watch.page_state import State, change, encoded, state_of
from server.watch.run_folder import RunFolder

logger = logging.getLogger(__name__)
_ALIVE_SECONDS = 15.0  # between comments that keep a connection open, and find one that is not


class LiveRun:
    """Looks at a run's folder and sends what has changed.

    Args:
        resume: returns the command that continues the run; empty if unknown.
        every: seconds between two looks.
    """

    def __init__(self, folder: RunFolder, resume: str = "", every: float = 1.0) -> None:
        self._folder, self._resume, self._every = folder, resume, every
        self._log = LogTail(folder.path / RUN_LOG)
        self._state: State | None = None
        self._seen: tuple[object, ...] = ()
        self._version, self._change = 0, ""
        self._news = asyncio.Condition()
        self._looking = asyncio.Lock()
        self._closed = False

    def current(self) -> tuple[State, str]:
        """Return the state by now, and what has changed; empty if nothing has."""
        seen = self._folder.signature()
        if self._state is not None and seen == self._seen:
            return self._state, ""
        state = state_of(self._folder.read(), self._log.read(), self._resume)
        self._seen = seen
        return state, encoded(change(self._state, state)) if state != self._state else ""

    async def keep_reading(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                await self._refresh()
            except Exception as error:  # of a file, once: the page goes on with what it has
                logger.warning(f"{self._folder.path} could not be read: {type(error).__name__}: {error}")
            await asyncio.sleep(self._every)

    async def close(self) -> None:
        """End all streams of events."""
        self._closed = True
        async with self._news:
            self._news.notify_all()

    async def _refresh(self) -> None:
        async with self._looking:
            state, changed = await asyncio.to_thread(self.current)
            if changed:
                async with self._news:
                    self._state, self._change = state, changed
                    self._version += 1
                    self._news.notify_all()

    async def events(self) -> AsyncIterator[str]:
        """Yield server-sent events until `close`: `whole`, then `change` after each look that found one."""
        if self._state is None:
            await self._refresh()
        seen = 0
        while not self._closed:
            version = self._version
            if version == seen:
                yield ": still here\n\n"
            elif version == seen + 1 and seen:
                yield _event("change", self._change)
            else:  # the first one, or the connection was too slow for each change
                yield _event("whole", encoded(change(None, self._state or {})))
            seen = version
            await self._wait(seen)

    async def _wait(self, seen: int) -> None:
        try:
            async with asyncio.timeout(_ALIVE_SECONDS), self._news:
                await self._news.wait_for(lambda: self._closed or self._version != seen)
        except TimeoutError:
            pass


def _event(name: str, data: str) -> str:
    return f"event: {name}\ndata: {data}\n\n"
