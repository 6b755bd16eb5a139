"""The papers' listing, word for word, on kernel sockets."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from tests.integration.programs import running

LISTING = """
from libvnf.api import *

def handle_c_reply(connID, request, packet):
    request.data = getRefPtr(packet)
    sendData(request.serverID, request.data, len(packet))
    closeConn(connID)

def handle_a_request(connID, request, packet):
    c = createClient("data0", "10.0.0.3", 5000, TCP)
    registerCallback(c, "read", handle_c_reply)
    addReqCtxt(c, request)
    request.serverID = connID
    request.data = getRefPtr(packet)
    sendData(c, request.data, len(packet))

serverID = createServer("data0", "10.0.0.2", 5000, TCP)
registerCallback(serverID, "read", handle_a_request)
startEventLoop()
"""

STATE = """
from libvnf.api import *

def counted(connID, request, value):
    sendData(connID, b"%03d\\n" % value)

def got(connID, request, value):
    putState("hits", "all", (value or 0) + 1, LOCAL, counted, connID)

def gone(connID, request, value):
    counted(connID, request, request.before if value is None else 666)

def removed(connID, request, value):
    request.before = value
    getState("hits", "all", REMOTE, gone, connID)

def stored(connID, request, value):
    delState("hits", "all", REMOTE, removed, connID)

def got_afar(connID, request, value):
    putState("hits", "all", (value or 0) + 7, REMOTE, stored, connID)

def read(connID, request, packet):
    if packet == b"get!":
        getState("hits", "all", LOCAL, got, connID)
    elif packet == b"tick":
        request.connID = connID
        registerTimer(0.001, lambda request: sendData(request.connID, b"tock"), request)
    else:
        getState("hits", "all", REMOTE, got_afar, connID)

serverID = createServer("data0", "10.0.0.2", 5000, TCP)
registerPacketBoundary(serverID, lambda buffered: 4)
registerCallback(serverID, "read", read)
startEventLoop()
"""


def config(tmp_path: Path, c: int = 1) -> list[str]:
    mapping = f'{{ "10.0.0.2:5000" = "127.0.0.1:0", "10.0.0.3:5000" = "127.0.0.1:{c}" }}'
    (tmp_path / "vnf.toml").write_text(f'[port.data0]\ntype = "kernel"\nmap = {mapping}\n')
    return ["--config", "vnf.toml", "--transport", "data0"]


def test_the_papers_listing_asks_c_and_answers_a(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as c:
        with running(tmp_path, LISTING, *config(tmp_path, c.getsockname()[1])) as program:
            assert program.places[0].startswith("tcp://127.0.0.1:")
            for message in (b"one", b"two"):
                with socket.create_connection(("127.0.0.1", program.port()), timeout=30) as a:
                    a.sendall(message)
                    asked, _ = c.accept()
                    with asked:
                        assert asked.recv(100) == message
                        asked.sendall(b"reply to " + message)
                        assert a.recv(100) == b"reply to " + message
                        assert asked.recv(1) == b""
            program.signal(signal.SIGTERM)
            assert program.exit() == 0
            assert program.errors == []


@pytest.mark.parametrize(("asked", "answer"), [(b"get!get!", b"001\n002\n"), (b"tick", b"tock"), (b"far!", b"007\n")])
def test_state_timers_and_boundaries_by_their_names(tmp_path: Path, asked: bytes, answer: bytes) -> None:
    with running(tmp_path, STATE, *config(tmp_path)) as program:
        with socket.create_connection(("127.0.0.1", program.port()), timeout=30) as a:
            a.sendall(asked)
            heard = b""
            while len(heard) < len(answer) and (piece := a.recv(100)):
                heard += piece
            assert heard == answer
