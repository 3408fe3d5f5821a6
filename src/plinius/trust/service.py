"""The broker as a service: three addresses, bounded requests, at most so many of each client.

    POST /v1/challenge   (nothing)            -> {"nonce", "seconds"}
    POST /v1/release     an envelope          -> {"lease", "sealed"}
    POST /v1/anchor      an anchor request    -> an authenticated answer

A refusal is 403 with {"refused", "todo"}; 413, 408 and 429 mean too large, too slow, too many.
"""

import asyncio
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from plinius.errors import PliniusError, StorageError
from plinius.jsonvalue import to_json
from plinius.trust.broker import Broker, refusal_of
from plinius.trust.evidence import MAX_EVIDENCE_BYTES
from plinius.trust.messages import MAX_MESSAGE_BYTES

BODY_SECONDS = 10
MAX_CLIENTS = 10_000
MAX_CONNECTIONS = 1_000


class Rates:
    """A bucket of requests for each client: `burst` at once, `rate` more each second."""

    def __init__(
        self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._clients: dict[str, tuple[float, float]] = {}

    def allows(self, client: str) -> bool:
        """Whether one more request of a client is allowed now."""
        now = self._clock()
        left, seen = self._clients.pop(client, (self._burst, now))
        left = min(self._burst, left + (now - seen) * self._rate)
        allowed = left >= 1
        self._clients[client] = (left - 1 if allowed else left, now)
        if len(self._clients) > MAX_CLIENTS:  # forget the one that was quiet the longest
            del self._clients[next(iter(self._clients))]
        return allowed


def make_app(broker: Broker, rates: Rates) -> Starlette:
    """The ASGI application of a broker."""

    async def answer(
        request: Request, limit: int, handle: Callable[[bytes, str], bytes]
    ) -> Response:
        client = request.client.host if request.client else "unknown"
        if not rates.allows(client):
            return _said(429, b'{"refused":"There are too many requests","todo":"Try again later"}')
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await _body(request, limit)
        except (TimeoutError, ClientDisconnect):
            return _said(408, b'{"refused":"The request is too slow","todo":"Try again"}')
        if body is None:
            return _said(413, b'{"refused":"The request is too large","todo":"Send less"}')
        try:
            return _said(200, await run_in_threadpool(handle, body, client))
        except PliniusError as error:
            return _said(403, refusal_of(error))

    async def challenge(request: Request) -> Response:
        return await answer(request, 0, lambda body, client: to_json(broker.challenge()))

    async def release(request: Request) -> Response:
        return await answer(
            request,
            MAX_EVIDENCE_BYTES,
            lambda body, client: to_json(broker.release(body, client)),
        )

    async def anchor(request: Request) -> Response:
        return await answer(request, MAX_MESSAGE_BYTES, broker.anchor)

    return Starlette(
        routes=[
            Route("/v1/challenge", challenge, methods=["POST"]),
            Route("/v1/release", release, methods=["POST"]),
            Route("/v1/anchor", anchor, methods=["POST"]),
        ]
    )


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one. Raises StorageError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        found = socket.create_server((host, port), family=family, backlog=1024)
        # Inherited by connections; asyncio does it only for sockets that it made. Without it the
        # second packet of an answer waits 40 ms.
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return found
    except OSError as error:
        raise StorageError(
            f"Cannot listen on {host}:{port}: {error.strerror or error}", "Choose another address"
        ) from None


def serve(app: Starlette, at: socket.socket, certificate: Path | None, key: Path | None) -> None:
    """Serve until SIGINT or SIGTERM; with TLS if there is a certificate. Raises StorageError."""
    config = uvicorn.Config(
        app, log_level="error", access_log=False, server_header=False, proxy_headers=False,
        lifespan="off", ws="none", timeout_keep_alive=30, limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=5,
        ssl_certfile=str(certificate) if certificate else None,
        ssl_keyfile=str(key) if key else None,
    )  # fmt: skip
    try:
        config.load()
    except OSError as error:
        raise StorageError(
            f"The TLS certificate {certificate} cannot be used: {error.strerror or error}",
            "Give a certificate and its private key, both in PEM",
        ) from None
    server = uvicorn.Server(config)

    def stop(*_: object) -> None:
        server.should_exit = True  # also before it runs; and it raises a signal again at its end

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    server.run(sockets=[at])


async def _body(request: Request, limit: int) -> bytes | None:
    """The body of a request; None if it has more than `limit` bytes."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            return None
    return bytes(body)


def _said(status: int, body: bytes) -> Response:
    return Response(body, status, media_type="application/json")
