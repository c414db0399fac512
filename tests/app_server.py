"""The application over real HTTP in a thread of the test, for servers that no command line makes."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Timed:
    """Adds a Server-Timing header to every answer, as proxies do."""

    def __init__(self, app: ASGIApp, value: str, delay_s: float = 0.0) -> None:
        self._app, self._value, self._delay_s = app, value, delay_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_timed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"server-timing", self._value.encode())]
            await send(message)

        if scope["type"] == "http" and scope["method"] == "POST":
            await asyncio.sleep(self._delay_s)
        await self._app(scope, receive, send_timed)


@contextlib.contextmanager
def serving(app: ASGIApp, port: int) -> Iterator[str]:
    """Serve the application on loopback until the block ends; give its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            thread.join(0.02)
            if not thread.is_alive():
                raise RuntimeError("the server did not start")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
