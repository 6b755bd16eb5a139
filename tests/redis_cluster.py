"""Redis servers for tests and benchmarks: single ones with any option, and a cluster of three masters, a replica each.

Everything is on 127.0.0.1, in directories that the caller gives, and ends with this process however that ends: each
server has its parent's death as a signal, which Linux ties to the *thread* that started it, so one thread starts them
all. A port comes from the kernel and stays reserved by a bound socket that never listens: a server that is killed finds
its own port again, however many connections other tests open meanwhile. The servers stand at the front of the
scheduler's autogroups: a node that a compiler keeps from its cpu for half a second would otherwise be taken for dead.
"""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.peers import DEADLINE_S, Process

SLOTS = 16384
NODE_TIMEOUT_MS = 500

# Unprivileged, the autogroup stays where it is.
PREFERRED = 'if [ -w /proc/self/autogroup ]; then echo -20 >/proc/self/autogroup 2>/dev/null || :; fi; exec "$@"'

_starter = ThreadPoolExecutor(1, thread_name_prefix="starts redis servers")


def until(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Asks until the answer is true, and returns it. Servers that cannot be asked yet are asked again."""
    begun, pause, answer = time.monotonic(), threading.Event(), None
    while True:
        with contextlib.suppress(redis.ConnectionError, redis.TimeoutError, redis.ResponseError):
            if answer := condition():
                return answer
        assert time.monotonic() - begun < deadline_s, f"not within {deadline_s} s: {what}; last answer: {answer!r}"
        pause.wait(0.01)


class ReservedPort:
    """A port of 127.0.0.1 that the kernel gives nobody else. Who sets SO_REUSEADDR, as Redis does, can listen there."""

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.number: int = self._socket.getsockname()[1]

    def release(self) -> None:
        self._socket.close()


class RedisServer:
    """One ``redis-server``, with everything in ``directory``. ``options`` are those of redis.conf.

    ``port`` is the plain one; with ``tls=Certificates(…)`` there is none, and ``port`` speaks TLS. ``start`` returns
    when it is ready, ``stop`` ends it for good, ``kill`` is kill -9; then ``start`` begins it again on the same port.
    """

    def __init__(
        self,
        directory: Path,
        options: Mapping[str, object] = {},
        *,
        tls: Certificates | None = None,
        cpu: int | None = None,
        program: str | Path = "redis-server",
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory, self.tls = directory, tls
        self._reserved = ReservedPort()
        self.port = self._reserved.number
        self._process: Process | None = None
        self.paused = False
        self._admin: redis.Redis | None = None
        given = {"bind": "127.0.0.1", "port": self.port, "dir": directory, "save": "", "appendonly": "no"}
        if tls:
            given |= {"port": 0, "tls-port": self.port, "tls-auth-clients": "no", **tls.options()}
        self.options: dict[str, object] = {**given, "enable-debug-command": "local", **options}
        pinned = [] if cpu is None else ["taskset", "-c", str(cpu)]
        self._command = ["setpriv", "--pdeathsig", "KILL", "sh", "-c", PREFERRED, "sh", *pinned, program]

    def __repr__(self) -> str:
        return f"<redis-server {self.port}, {'running' if self.running else 'ended'}{', paused' * self.paused}>"

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    @property
    def url(self) -> str:
        return f"{'rediss' if self.tls else 'redis'}://127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        """Started, and not ended by ``kill`` or ``stop``. A paused one runs."""
        return self._process is not None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self} has no process"
        return self._process.pid

    @property
    def output(self) -> str:
        """What this start of it has logged."""
        return self._process.output if self._process else ""

    def launch(self) -> None:
        """Starts it and does not wait: ``ready`` does."""
        assert self._process is None, f"{self} runs already"
        words = [word for name, value in self.options.items() for word in (f"--{name}", *str(value).split(" "))]
        self._process = _starter.submit(Process, [*self._command, *words], cwd=self.directory).result()

    def ready(self) -> None:
        assert self._process is not None
        self._process.wait_for("Ready to accept connections")

    def start(self) -> None:
        self.launch()
        self.ready()

    def kill(self) -> None:
        """kill -9; nothing when it does not run."""
        if self._process is not None:
            process, self._process, self.paused = self._process, None, False
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stop()

    def pause(self) -> None:
        """SIGSTOP: it keeps its connections and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        self.paused = True

    def resume(self) -> None:
        if self.paused:
            assert self._process is not None
            self._process.send_signal(signal.SIGCONT)
            self.paused = False

    def restart(self) -> None:
        """kill -9, and again."""
        self.kill()
        self.start()

    def stop(self) -> None:
        if self._admin is not None:
            self._admin.close()
            self._admin = None
        self.kill()
        self._reserved.release()

    def client(self, **options: Any) -> redis.Redis:
        """redis-py's client, as the default user; answers are bytes. The caller closes it."""
        given = {"socket_timeout": DEADLINE_S, "protocol": 2, "password": self.options.get("requirepass")}
        if self.tls:
            # The server's own certificate: where it asks for one, anything that the authority has signed will do.
            shown = {"ssl_certfile": str(self.tls.cert), "ssl_keyfile": str(self.tls.key)}
            given |= {"ssl": True, "ssl_ca_certs": str(self.tls.ca), **shown}
        return redis.Redis(port=self.port, retry=Retry(NoBackoff(), 1), **given | options)

    @property
    def admin(self) -> redis.Redis:
        """A client whose answers are strings; ``stop`` closes it."""
        if self._admin is None:
            self._admin = self.client(decode_responses=True)
        return self._admin

    def ask(self, *words: object) -> Any:
        """The answer to one command."""
        return self.admin.execute_command(*map(str, words))

    def info(self, section: str) -> dict[str, Any]:
        found: dict[str, Any] = self.admin.info(section)
        return found


class Certificates:
    """An authority of its own in ``directory``, and a certificate of it for 127.0.0.1 and localhost, by ``openssl``."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.ca, self.cert, self.key = (directory / name for name in ("ca.crt", "server.crt", "server.key"))
        authority_key, request = directory / "ca.key", directory / "server.csr"
        names = "subjectAltName=IP:127.0.0.1,DNS:localhost"
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        extensions = directory / "server.ext"
        extensions.write_text(names + "\n")
        self._openssl(
            *("req", "-x509", *key, "-keyout", authority_key, "-out", self.ca, "-days", 2, "-subj", "/CN=authority"),
            *("-addext", "keyUsage=critical,keyCertSign"),
        )
        self._openssl("req", *key, "-keyout", self.key, "-out", request, "-subj", "/CN=store")
        self._openssl(
            *("x509", "-req", "-in", request, "-CA", self.ca, "-CAkey", authority_key, "-CAcreateserial"),
            *("-out", self.cert, "-days", 2, "-extfile", extensions),
        )

    @staticmethod
    def _openssl(*words: object) -> None:
        child = Process(["openssl", *map(str, words)])
        try:
            assert child.wait() == 0, child.output
        finally:
            child.stop()

    def options(self) -> dict[str, object]:
        return {"tls-cert-file": self.cert, "tls-key-file": self.key, "tls-ca-cert-file": self.ca}


class Member(NamedTuple):
    """A node as one node sees it: a line of CLUSTER NODES, without what changes all the time."""

    id: str
    port: int
    master: str | None  # whom it replicates
    slots: tuple[tuple[int, int], ...]  # first and last of each range
    well: bool


def members(node: RedisServer) -> tuple[Member, ...]:
    """All nodes as ``node`` sees them, itself first."""
    found = []
    for line in node.ask("cluster", "nodes").splitlines():
        number, address, flags, master, _, _, _, link, *words = line.split()
        slots = [word.partition("-") for word in words if not word.startswith("[")]
        ranges = tuple((int(first), int(last or first)) for first, _, last in slots)
        well = link == "connected" and not {"fail", "fail?", "handshake", "noaddr"} & set(flags.split(","))
        port = int(address.partition("@")[0].rpartition(":")[2])
        found.append(("myself" not in flags, Member(number, port, None if master == "-" else master, ranges, well)))
    return tuple(member for _, member in sorted(found))


class RedisCluster:
    """Three masters of a third of the slots each, and a replica of each. Usable some three seconds after ``start``."""

    def __init__(
        self,
        directory: Path,
        options: Mapping[str, object] = {},
        *,
        masters: int = 3,
        replicas: bool = True,
        cpu: int | None = None,
        tls: Certificates | None = None,
    ) -> None:
        self._tls = tls
        self._masters, self._reserved = masters, [ReservedPort() for _ in range(masters * (1 + replicas))]
        self.nodes: list[RedisServer] = []
        for number, bus in enumerate(self._reserved):
            clustered: dict[str, object] = {
                "cluster-enabled": "yes",
                "cluster-port": bus.number,
                "cluster-node-timeout": NODE_TIMEOUT_MS,
                # However long its master is gone, a replica stands for election; and it stays with its master.
                "cluster-replica-validity-factor": 0,
                "cluster-allow-replica-migration": "no",
                # A master waits that long for more replicas before it sends its data to one.
                "repl-diskless-sync-delay": 0,
            }
            if tls:
                clustered |= {"tls-cluster": "yes", "tls-replication": "yes"}
            self.nodes.append(RedisServer(directory / str(number), {**clustered, **options}, cpu=cpu, tls=tls))

    @property
    def url(self) -> str:
        scheme = "rediss-cluster" if self._tls else "redis-cluster"
        return f"{scheme}://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def start(self) -> None:
        for node in self.nodes:
            node.launch()
        for number, node in enumerate(self.nodes):
            node.ready()
            # Distinct epochs from the start; or the nodes first have to settle whose is whose.
            node.ask("cluster", "set-config-epoch", number + 1)
        for number, node in enumerate(self.nodes[: self._masters]):
            first, end = (SLOTS * n // self._masters for n in (number, number + 1))
            node.ask("cluster", "addslotsrange", first, end - 1)
        for node in self.nodes[1:]:
            self.nodes[0].ask("cluster", "meet", "127.0.0.1", node.port, node.options["cluster-port"])
        for number, node in enumerate(self.nodes[self._masters :]):
            master = self.nodes[number].ask("cluster", "myid")
            until(partial(node.ask, "cluster", "replicate", master), f"{node} knows its master")
        until(self._whole, "the cluster is whole")

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()
        for port in self._reserved:
            port.release()

    # --- who is who ---------------------------------------------------------------------------------------------------

    def awake(self) -> list[RedisServer]:
        """The nodes that were neither killed nor paused."""
        return [node for node in self.nodes if node.running and not node.paused]

    def masters(self) -> list[RedisServer]:
        """The nodes that say of themselves that they are masters."""
        return [node for node in self.awake() if members(node)[0].master is None]

    def replica_of(self, master: RedisServer) -> RedisServer:
        """A node that says that it replicates ``master``."""
        number = members(master)[0].id
        return next(node for node in self.awake() if members(node)[0].master == number)

    def owner(self, slot: int) -> RedisServer:
        """The master that says that ``slot`` is its own."""
        found: RedisServer = until(lambda: self._owner(slot), f"slot {slot} has an owner")
        return found

    def _owner(self, slot: int) -> RedisServer | None:
        serves = (node for node in self.masters() if any(a <= slot <= b for a, b in members(node)[0].slots))
        return next(serves, None)

    def slot(self, key: str | bytes) -> int:
        """The slot of a key, by one of the nodes."""
        return int(self.awake()[0].admin.execute_command("cluster", "keyslot", key))

    # --- faults -------------------------------------------------------------------------------------------------------

    def migrate(
        self,
        slot: int,
        to: RedisServer,
        halfway: Callable[[], object] = lambda: None,
        *,
        first: Sequence[bytes] = (),
    ) -> None:
        """Moves ``slot`` as ``redis-cli --cluster reshard`` does. ``halfway()`` is called when half of its keys are
        over, or those that are ``first``: clients are told ASK about those."""
        source = self.owner(slot)
        if source is to:
            return
        origin, target = source.ask("cluster", "myid"), to.ask("cluster", "myid")
        to.ask("cluster", "setslot", slot, "importing", origin)
        source.ask("cluster", "setslot", slot, "migrating", target)
        if first:
            self._send(source, to, first)
        else:
            self._move(source, to, slot, int(source.ask("cluster", "countkeysinslot", slot)) // 2)
        halfway()
        while self._move(source, to, slot, 1000):
            pass
        for node in (to, source, *(node for node in self.masters() if node not in (to, source))):
            node.ask("cluster", "setslot", slot, "node", target)

    def _move(self, source: RedisServer, to: RedisServer, slot: int, most: int) -> int:
        with source.client() as raw:
            keys = raw.execute_command("cluster", "getkeysinslot", str(slot), str(most))
        if keys:
            self._send(source, to, keys)
        return len(keys)

    @staticmethod
    def _send(source: RedisServer, to: RedisServer, keys: Sequence[bytes]) -> None:
        with source.client() as raw:
            raw.execute_command("migrate", "127.0.0.1", str(to.port), "", "0", "5000", "keys", *keys)

    def wait_failover(self, master: RedisServer) -> None:
        """Until the other nodes agree that each slot is served, none of them by the killed or paused ``master``."""

        def taken_over() -> bool:
            views = [[m for m in members(node) if m.slots] for node in self.awake()]
            return all(view and master.port not in [m.port for m in view] for view in views) and self._covered()

        until(taken_over, f"the replica of {master} has taken over")

    def heal(self) -> None:
        """Wakes and starts what does not run, closes slots that were left open, and removes every key."""
        for node in self.nodes:
            node.resume()
            if not node.running:
                node.launch()
                node.ready()
        until(self._whole, "the cluster is whole")
        for node in self.masters():
            for slot in re.findall(r"\[(\d+)-", node.ask("cluster", "nodes")):
                node.ask("cluster", "setslot", slot, "stable")
            node.ask("flushall", "sync")

    def _covered(self) -> bool:
        """Every awake node sees all slots served, by nodes that are well."""
        asked = self.awake()
        return all(
            "cluster_state:ok" in node.ask("cluster", "info")
            and sum(b - a + 1 for m in members(node) if m.well for a, b in m.slots) == SLOTS
            for node in asked
        )

    def _whole(self) -> bool:
        """All nodes see the same of each other and nothing amiss, and each replica follows its master."""
        views = {frozenset(members(node)) for node in self.nodes}
        return (
            len(views) == 1
            and len(view := views.pop()) == len(self.nodes)
            and all(member.well for member in view)
            and len([member for member in view if member.master is None]) == self._masters
            and self._covered()
            and all(n.info("replication").get("master_link_status", "up") == "up" for n in self.nodes)
        )
