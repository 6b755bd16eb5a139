"""VNFs in the test's own process: an echo server in every shape of handler, and a wait for what the loop does."""

from __future__ import annotations

import asyncio
from typing import Any

from libvnf import VNF, Connection, Fixed, Request


async def until(condition: Any) -> None:
    """Lets the loop run until ``condition()``; the test's own time limit ends it otherwise."""
    while not condition():  # noqa: ASYNC110 - conditions of the native core have no event
        await asyncio.sleep(0.001)


def echo_server(vnf: VNF, url: str, shape: str = "def") -> Any:
    if shape == "session":
        server = vnf.session(url, framing=Fixed(4))

        @server
        async def session(conn: Connection) -> None:
            async for message in conn:
                conn.send(message)

        return server
    server = vnf.server(url, framing=Fixed(4))
    if shape == "def":

        @server
        def plain(conn: Connection, request: Request, packet: Any) -> None:
            conn.send(packet)
    else:

        @server
        async def waiting(conn: Connection, request: Request, packet: Any) -> None:
            await asyncio.sleep(0)
            conn.send(packet)

    return server
