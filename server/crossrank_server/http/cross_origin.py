"""Allow scripts of pages from other origins to call the server (CORS).

Source: https://fetch.spec.whatwg.org/#http-cors-protocol
"""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

# Headers of answers that scripts may read.
_EXPOSED = (
    "x-request-id",
    "retry-after",
    "server-timing",
    "x-truncated-documents",
    "preference-applied",
    "accept-encoding",
    "www-authenticate",
    *(f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset") for kind in ("requests", "documents")),
)


def allow_origins(app: FastAPI, origins: Sequence[str]) -> None:
    """Let scripts of these origins call the application; must be added last, so that errors have the headers too.

    Scripts send the API key in a header, so that cookies (credentials) need not be allowed.

    Args:
        app: The application.
        origins: As browsers send them, `https://app.example.org`; `*` is all.
    """
    app.add_middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=("GET", "HEAD", "POST"),
        allow_headers=("*",),
        expose_headers=_EXPOSED,
        # A public page that is allowed may call a server within a company, or on the same machine.
        allow_private_network=True,
    )
