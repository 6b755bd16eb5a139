"""The part of ``libvnf._native`` that talks to the store of tables; that module's stub has its names from here."""

from collections.abc import Callable
from typing import Any, Literal, Self, TypeAlias, final

__all__ = ["StoreClient"]

_Event: TypeAlias = (
    tuple[Literal["invalid"], int, list[bytes] | None]
    | tuple[Literal["deaf"], int, list[int]]
    | tuple[Literal["lock_lost"], int, bytes, int]
    | tuple[Literal["state"], str, bool]
)
_Done: TypeAlias = Callable[[Any], object]

@final
class StoreClient:
    """A client of a Redis or a Redis Cluster, on a thread of its own. ``libvnf.state.store.Store`` says what the calls
    mean; here ``done`` comes first, and is called by ``drain``, with the answer.

    Calls return at once and never wait; ``go`` begins what was called. What the store cannot do now is tried again,
    elsewhere if need be, until ``timeout_s`` is over (each step of a scan or a drop has that time). ``StateFull`` while
    ``max_queued`` operations or ``max_queued_bytes`` wait, undrained answers too; ``StateError`` once it is closed.

    ``nodes``: hosts and ports to begin at (the path of a Unix socket and 0); the other nodes of a cluster are found.
    ``tls_ca``: whom to trust, PEM; with it all connections are TLS, and a node's certificate must be for its host.
    ``tls_identity``: a certificate and its key, PEM, for nodes that ask for one.

    ``silence_s``: a node that owes an answer that long has its connection closed; an idle one is asked every half of
    it, so that a link that went dead is known after twice that; one on which something still trickles is not.
    ``replica_timeout_s``: how long replicas may take to acknowledge. ``stall_limit_s``: for how long after the last
    ``beat`` locks are renewed. ``max_reply_bytes``: a longer answer of a node ends its connection. ``ConfigError`` for
    what cannot be.
    """

    def __new__(
        cls,
        nodes: list[tuple[str, int]],
        /,
        *,
        cluster: bool = False,
        username: str | None = None,
        password: str | None = None,
        tls_ca: bytes | None = None,
        tls_identity: tuple[bytes, bytes] | None = None,
        namespace: str = "vnf",
        timeout_s: float = 10.0,
        silence_s: float = 1.0,
        replica_timeout_s: float = 1.0,
        stall_limit_s: float = 120.0,
        max_queued: int = 65_536,
        max_queued_bytes: int = 67_108_864,
        max_reply_bytes: int = 201_326_592,
    ) -> Self: ...
    @property
    def wake_fd(self) -> int:
        """Readable when ``drain`` has something."""
    def table(self, name: str, partitions: int = 64, keeps_expired: bool = False, /) -> int:
        """A handle; the same for the same name. ``ConfigError`` for a wrong name, or other settings than before."""
    def read(self, done: _Done, table: int, keys: list[bytes], /) -> None:
        """Answer: ``list[Stored | StateError | None]``, one for each key."""
    def write(
        self,
        done: _Done,
        table: int,
        keys: list[bytes],
        expected: list[int] | None,
        first: int,
        payloads: list[bytes | None],
        deadlines: list[int] | None = None,
        recents: list[bytes] | None = None,
        update: bool = False,
        replicas: int = 0,
        guard: tuple[bytes, int] | None = None,
        /,
    ) -> None:
        """Answer: ``Written``."""
    def scan(self, done: _Done, table: int, cursor: tuple[int, int, int] | None, count: int, /) -> None:
        """Answer: the next cursor or None, and what was ``Found``; or a ``StateError``. A cursor from before the
        topology changed begins anew."""
    def drop(self, done: _Done, table: int, /) -> None:
        """Answer: None or a ``StateError``."""
    def claim_expired(self, done: _Done, table: int, now_ms: int, claim_ms: int, most: int, /) -> None:
        """Answer: ``list[tuple[bytes, Stored]]`` or a ``StateError``."""
    def expired(self, done: _Done, table: int, keys: list[bytes], versions: list[int], /) -> None:
        """Answer: None or a ``StateError``."""
    def lock(self, done: _Done, table: int, key: bytes, owner: int, lease_ms: int, hold_ms: int = 0, /) -> None:
        """Answer: the fence, None when another owner has it, or a ``StateError``. From then on the lease is renewed,
        for ``hold_ms`` if that is not 0."""
    def unlock(self, done: _Done, table: int, key: bytes, owner: int, /) -> None:
        """Answer: None or a ``StateError``."""
    def call(self, done: _Done, words: list[bytes], /) -> None:
        """Any command for the node that serves the key ``words[1]``; where an answer was lost it is sent again. Answer:
        bytes, int, None or a list of these, or a ``StateError``."""
    def beat(self, /) -> None:
        """The loop is alive."""
    def go(self, /) -> None:
        """Begins what was called since: once for many calls, at the end of a turn of the loop."""
    def drain(self, /) -> tuple[list[BaseException], list[_Event]]:
        """Tells those who called what became of it; what they raised is returned. Then what was told unasked:

        ``("invalid", table, keys)``: others changed these; None: anything of the table may be stale.
        ``("deaf", table, partitions)``: anything in these may be stale: a connection was lost, a slot moved.
        ``("lock_lost", table, key, owner)``: its lease ran out or it went to another owner.
        ``("state", text, hopeless)``: "up" or "down: why", when that changes; hopeless when waiting does not help,
        since the store refuses this client or is not of the kind that was named.
        """
    def statistics(self, /) -> dict[str, int]:
        """Counters by name; what is now ends in ``_now``."""
    def close(self, /) -> None:
        """Ends the thread, and returns when it has. The next ``drain`` tells of every call that had no answer:
        ``DurabilityUnknown`` if it wrote, else ``StoreUnavailable``. A second call does nothing."""
