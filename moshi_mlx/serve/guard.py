"""Who may connect: decided from a request's headers and query alone, before anything of it is believed.

A browser sends no cookie rule for a websocket, but it sends Origin, which must be the page's own or a listed one; who
sends none is a program. The Host must be one that is served, or a name that an attacker points at this machine (DNS
rebinding) would make his page the page's own. A token, where there is one, is compared in constant time.
"""

from __future__ import annotations

import hmac
import ipaddress
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

from ..errors import MoshiError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
TOKEN_QUERIES = ("auth_id", "worker_auth_id", "token")


class Refused(MoshiError):
    """A request that is not let in; `status` is the HTTP status that says so."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Guard:
    """`origins`: further origins that may connect, as https://name[:port]; their names may stand in Host too."""

    def __init__(self, host: str, token: str | None = None, origins: tuple[str, ...] = ()) -> None:
        self._token = token.encode() if token else None
        self._origins = {origin.rstrip("/").lower() for origin in origins}
        machine = socket.gethostname().lower()
        named = {urlsplit(origin).hostname or "" for origin in self._origins}
        self._hosts = {*LOOPBACK, host.lower(), machine, f"{machine.split('.')[0]}.local", *named}

    def check_host(self, headers: Mapping[str, str]) -> None:
        """Raises Refused where Host is a name that is not served. An address is no name: nothing can point it here."""
        host = (urlsplit(f"//{headers.get('Host', '')}").hostname or "").lower()
        if host not in self._hosts and not _is_address(host):
            raise Refused(403, f"Host {host!r} is not served here; start the server with --origin https://{host}")

    def check_origin(self, headers: Mapping[str, str]) -> None:
        """Raises Refused where a page of another origin connects."""
        origin = headers.get("Origin")
        if origin is None:
            return
        own = urlsplit(origin).netloc.lower() == headers.get("Host", "").lower() and origin != "null"
        if not own and origin.rstrip("/").lower() not in self._origins:
            raise Refused(403, f"pages of {origin} may not connect; start the server with --origin {origin}")

    def check_token(self, headers: Mapping[str, str], query: Mapping[str, str]) -> None:
        """Raises Refused where a token is wanted and none of the usual places has it."""
        if self._token is None:
            return
        scheme, _, bearer = headers.get("Authorization", "").partition(" ")
        given = [bearer.strip() if scheme.lower() == "bearer" else "", headers.get("kyutai-api-key", "")]
        given += [query.get(name, "") for name in TOKEN_QUERIES]
        matches = [hmac.compare_digest(each.encode("utf-8", "surrogateescape"), self._token) for each in given]
        if not any(matches):
            raise Refused(401, "a token is needed: Authorization: Bearer, kyutai-api-key, or auth_id in the query")

    def check(self, headers: Mapping[str, str], query: Mapping[str, str]) -> None:
        """All of it, for a conversation. Raises Refused."""
        self.check_host(headers)
        self.check_origin(headers)
        self.check_token(headers, query)


def is_loopback(host: str) -> bool:
    """Whether nobody outside this machine reaches a server that listens there."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
