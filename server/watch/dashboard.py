"""The live page of a run: three static files and a stream of events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from importlib.resources import files

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from server.watch.live import LiveRun

_FILES = {
    "/": ("dashboard.html", "text/html; charset=utf-8"),
    "/dashboard.css": ("dashboard.css", "text/css; charset=utf-8"),
    "/dashboard.js": ("dashboard.js", "text/javascript; charset=utf-8"),
    "/chart.js": ("chart.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


def dashboard(live: LiveRun) -> Starlette:
    """Return the application; it looks at the run while it is served."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        looking = asyncio.create_task(live.keep_reading())
        yield
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking

    def events(request: Request) -> Response:
        return StreamingResponse(live.events(), media_type="text/event-stream")

    pages = [Route(path, _static(*found)) for path, found in _FILES.items()]
    return Starlette(routes=[*pages, Route("/events", events)], lifespan=lifespan)


def _static(name: str, media_type: str) -> Callable[[Request], Response]:
    content = (files("server.watch") / "static" / name).read_bytes()

    def answer(request: Request) -> Response:
        return Response(content, headers={"content-type": media_type})

    return answer
