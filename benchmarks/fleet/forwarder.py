"""A TCP forwarder between a device and its server: counts bytes both ways, and can be cut as a network is."""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType

_CHUNK = 1 << 16
_PATIENCE = 10.0


class Wire:
    """Forwards `127.0.0.1:port` to `target`; `up` and `down` are bytes as TCP carries them, TLS included.

    `cut` is a network that is gone: nothing is refused or reset, bytes and new connections just do not arrive until
    `heal`. Runs in a thread of its own.
    """

    def __init__(self, target: tuple[str, int], bind: str = "127.0.0.1") -> None:
        self.target = target
        self.bind = bind
        self.port = 0
        self.up = 0
        self.down = 0
        self.callers: set[str] = set()  # addresses that connected
        self._loop = asyncio.new_event_loop()
        self._whole: asyncio.Event
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wire", daemon=True)
        self._thread.start()
        if not self._ready.wait(_PATIENCE):
            raise RuntimeError(f"no forwarder on {bind} after {_PATIENCE:g} s")

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def address(self) -> str:
        """Address that a device connects to."""
        return f"{self.bind}:{self.port}"

    def cut(self) -> None:
        """Let nothing pass any more."""
        self._loop.call_soon_threadsafe(self._whole.clear)

    def heal(self) -> None:
        """Let everything pass again, what was under way first."""
        self._loop.call_soon_threadsafe(self._whole.set)

    def close(self) -> None:
        """End the forwarder and its connections."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._end.set)
            self._thread.join(_PATIENCE)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self._loop.close()

    async def _serve(self) -> None:
        self._whole, self._end = asyncio.Event(), asyncio.Event()
        self._whole.set()
        server = await asyncio.start_server(self._carry, self.bind, 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._end.wait()
        server.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.callers.add(str(writer.get_extra_info("peername")[0]))
        await self._whole.wait()
        try:
            there, back = await asyncio.open_connection(*self.target)
        except OSError:
            writer.close()
            return
        await asyncio.gather(self._pump(reader, back, "up"), self._pump(there, writer, "down"))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, direction: str) -> None:
        try:
            while data := await source.read(_CHUNK):
                await self._whole.wait()
                setattr(self, direction, getattr(self, direction) + len(data))
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            await self._whole.wait()
            sink.close()
