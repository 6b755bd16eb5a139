"""Fixtures that all tests share, those of the examples too. What they hand out is taken back, however a test ends."""

import contextlib
import itertools
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.peers import Namespace, Process, Testpmd, frames_without_fault, missing
from tests.redis_cluster import Certificates, RedisCluster, RedisServer

# The machines are shared and noisy: an example's duration says nothing about the code.
_calm = hypothesis.settings(
    deadline=None, print_blob=True, suppress_health_check=[hypothesis.HealthCheck.too_slow], max_examples=100
)
hypothesis.settings.register_profile("calm", _calm)
hypothesis.settings.register_profile("soak", _calm, max_examples=5000)
hypothesis.settings.load_profile("calm")


def _need(*programs: str) -> None:
    """Skips, saying what to do about it, or fails where nothing may be missing."""
    for program in programs:
        if reason := missing(program):
            if os.environ.get("CI"):
                pytest.fail(reason, pytrace=False)
            pytest.skip(reason)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        _need(*mark.args)


@pytest.fixture(scope="session", autouse=True)
def control_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """VNFs of tests are found by tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VNF_CONTROL", str(tmp_path_factory.mktemp("control")))
        yield


@pytest.fixture
def free_port() -> Callable[[], int]:
    """``free_port()`` is a port of 127.0.0.1 that nothing uses, for TCP as well as UDP, another one at each call."""
    given: set[int] = set()

    def take() -> int:
        while True:
            with socket.socket() as stream, socket.socket(type=socket.SOCK_DGRAM) as datagram:
                stream.bind(("127.0.0.1", 0))
                port: int = stream.getsockname()[1]
                with contextlib.suppress(OSError):
                    datagram.bind(("127.0.0.1", port))
                    if port not in given:
                        given.add(port)
                        return port

    return take


@pytest.fixture
def process() -> Iterator[Callable[..., Process]]:
    """``process([program, …], netns=…, cwd=…, env=…)`` starts a :class:`tests.peers.Process`."""
    with contextlib.ExitStack() as started:

        def start(*args: Any, **kwargs: Any) -> Process:
            child = Process(*args, **kwargs)
            started.callback(child.stop)
            return child

        yield start


@pytest.fixture
def vnf_run(process: Callable[..., Process]) -> Callable[..., Process]:
    """``vnf_run(file, "--set", "x=1", netns=…)`` is ``vnf run file --set x=1``, once it serves."""

    def start(file: Path, *options: str, **kwargs: Any) -> Process:
        child = process([sys.executable, "-m", "libvnf", "run", file, *options], **kwargs)
        child.wait_for(r"^\S+: ready in ")
        return child

    return start


@pytest.fixture
def testpmd() -> Iterator[Callable[..., Testpmd]]:
    """``testpmd(Testpmd.memif(path, role="server"), forward="rxonly")`` starts it and waits until it is up."""
    _need("dpdk-testpmd")
    with contextlib.ExitStack() as started:

        def start(*args: Any, **kwargs: Any) -> Testpmd:
            peer = Testpmd(*args, **kwargs)
            started.callback(peer.stop)
            return peer

        yield start


@pytest.fixture
def netns() -> Iterator[Callable[[], Namespace]]:
    """``netns()`` is a new network namespace (:class:`tests.peers.Namespace`)."""
    _need("ip", "root")
    with contextlib.ExitStack() as made:

        def make() -> Namespace:
            namespace = Namespace()
            made.callback(namespace.delete)
            return namespace

        yield make


@pytest.fixture(scope="session")
def session_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """The cluster behind ``redis_cluster``, as the last test left it."""
    _need("redis-server")
    cluster = RedisCluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def redis_cluster(session_cluster: RedisCluster) -> RedisCluster:
    """Three masters with a replica each, whole and empty; the same servers for all tests of a session."""
    session_cluster.heal()
    return session_cluster


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """``redis_server({"requirepass": …}, tls=certificates)`` is a running :class:`RedisServer`."""
    _need("redis-server")
    with contextlib.ExitStack() as started:

        def start(*args: Any, **kwargs: Any) -> RedisServer:
            server = RedisServer(tmp_path / f"redis{next(serial)}", *args, **kwargs)
            started.callback(server.stop)
            server.start()
            return server

        serial = itertools.count()
        yield start


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A certificate for 127.0.0.1 and the authority that signed it."""
    _need("openssl")
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def tshark_check() -> Callable[[Path], int]:
    """``tshark_check(capture)`` finds no malformed frame and no bad checksum, and returns the number of frames."""
    _need("tshark")
    return frames_without_fault
