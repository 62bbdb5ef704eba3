"""Connections on which no request comes are ended: otherwise a few hundred silent ones would keep out all others."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol


class _Timed(H11Protocol):
    """A connection whose next request has to begin, line and headers, in so many seconds; bodies have their own."""

    seconds: float
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As of asyncio."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """As of asyncio."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """As of asyncio."""
        self._stop()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Start the clock where a request is still to come whole, and stop it where one has."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._late is None:
            self._late = self.loop.call_later(self.seconds, self.transport.close)

    def _stop(self) -> None:
        if self._late is not None:
            self._late.cancel()
        self._late = None


def timed(seconds: float) -> type[H11Protocol]:
    """How uvicorn is to speak HTTP, where a request that does not begin in so many seconds is not waited for."""
    return type("Timed", (_Timed,), {"seconds": seconds})
