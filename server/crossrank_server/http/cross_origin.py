"""CORS: what lets scripts of pages from elsewhere call the server.

Source: https://fetch.spec.whatwg.org/#http-cors-protocol
"""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

# What answers say beside their body; scripts see no other header unless it is named.
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
    """Let scripts of these origins call the application; it must be the last middleware, so that errors say it too.

    Keys are in headers that a script sets itself, so that no cookies (credentials) need be allowed.

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
        # Pages of the internet that are allowed may call a server within a company, or on the same machine.
        allow_private_network=True,
    )
