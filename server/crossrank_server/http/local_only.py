"""Keep pages of other websites from using a server that is meant for the machine it runs on.

A page that a user opens may send requests to 127.0.0.1. Browsers keep its script from reading the answers unless CORS
allows it, but they send simple requests all the same; and a page whose own name is made to resolve to 127.0.0.1 (DNS
rebinding) is of the same origin as the server, and may read everything.

Sources:
    https://www.rfc-editor.org/rfc/rfc9110#section-7.2 (Host)
    https://www.w3.org/TR/fetch-metadata/ (Sec-Fetch-Site)
    https://fetch.spec.whatwg.org/#origin-header (browsers send Origin with every POST to another origin)
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Collection

from crossrank.errors import Forbidden

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]*)(?::\d{0,5})?")


class LocalOnly:
    """Refuse what comes from pages of other websites.

    Args:
        names: Names by which callers address the server, beside localhost; `*` is any.
        origins: Origins whose pages may call it (CORS); `*` is all.
    """

    def __init__(self, names: Collection[str], origins: Collection[str]) -> None:
        self._names = {"localhost", *(name.lower() for name in names)}
        self._origins = frozenset(origins)
        self._allows = functools.lru_cache(256)(self._allows_host)

    def check(self, method: str, host: str | None, origin: str | None, site: str | None) -> None:
        """Refuse a request by its headers.

        Args:
            method: Of the request.
            host: The header Host; a client that sends none is no browser.
            origin: The header Origin.
            site: The header Sec-Fetch-Site.

        Raises:
            Forbidden: It names another host, or a page of another origin sends it.
        """
        if host is not None and not self._allows(host):
            raise Forbidden(
                f"host is {host[:100]!r}, and this server answers on the machine's own addresses and under the names "
                f"{', '.join(sorted(self._names))}: use one of them, or add it with --allowed-hosts",
                code="host_not_allowed",
            )
        if method != "POST" or (origin is None and site is None) or site in ("same-origin", "none"):
            return
        # Browsers leave Sec-Fetch-Site out for addresses that are neither HTTPS nor loopback.
        if site is None and origin is not None and origin.partition("://")[2].lower() == (host or "").lower():
            return
        if "*" in self._origins or origin in self._origins:
            return
        raise Forbidden(
            f"a page of the origin {(origin or 'unknown')[:100]!r} sent this, and pages of other origins may not use "
            "this server: name the origin in --cors-origin, where its pages may",
            code="origin_not_allowed",
        )

    def _allows_host(self, host: str) -> bool:
        """Tell whether a Host header names the server; an address always does, as only names can be rebound."""
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1].strip("[]").lower().removesuffix(".")
        return "*" in self._names or name in self._names or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
