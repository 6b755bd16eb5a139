"""The whole error tree. Builtins are used where they fit: ``ConnectionError``, ``TimeoutError``, ``RuntimeError``.

By cause: :class:`ConfigError` is the operator's or the author's, the others say what a part of the system refused. A
message says what was found, what was wanted, and where. The native module raises ``BufferFull`` and ``MessageTooLong``.
"""

from __future__ import annotations


class VNFError(Exception):
    """The root of everything libvnf raises of its own."""


class ConfigError(VNFError, ValueError):
    """A wrong setting, option, endpoint or handler: ``file:line: key: what was found, what is allowed``."""

    def __init__(
        self, problem: str, *, file: str | None = None, line: int | None = None, key: str | None = None
    ) -> None:
        self.problem, self.file, self.line, self.key = problem, file, line, key
        place = "" if file is None else f"{file}: " if line is None else f"{file}:{line}: "
        super().__init__(place + (f"{key}: " if key else "") + problem)

    def at(self, *, file: str | None = None, line: int | None = None, key: str | None = None) -> ConfigError:
        """The same problem, with the place where it was found; a place already known is kept."""
        if self.file is not None:
            return self
        return ConfigError(self.problem, file=file, line=line, key=self.key or key)


class TransportError(VNFError):
    """A port or socket could not do what was asked."""


class Unsupported(TransportError):
    """Known, and left to a later release; the message says what to use instead."""


class AddressInUse(TransportError):
    """Another socket listens there already."""


class BufferFull(TransportError):
    """``max_buffered_bytes`` wait to be sent on one connection: ``await conn.drain()``, or use ``on_writable``."""


class FlowsFull(TransportError):
    """``limits.max_flows`` rules are installed: remove some, or let them end with ``idle_s``."""


class FramingError(VNFError, ConnectionError):
    """What the peer sent cannot be cut into messages."""


class MessageTooLong(FramingError):
    """A message, or what ``receive`` looked through, is longer than its limit."""


class StateError(VNFError):
    """A table refused, or its store failed."""


class StateFull(StateError):
    """The cache is full of changes that the store does not have yet."""


class StateConflict(StateError):
    """Another replica has changed the key since this one read it: the store's value stands, the change was not made."""


class StoreUnavailable(StateError):
    """The store did not answer in time, or is not there; nothing was changed by this call."""


class DurabilityUnknown(StateError):
    """The write may stand in the store or not, or on too few of its replicas: it was sent, and no answer says."""


class LockLost(StateError):
    """The lock's lease ran out, or another owner has it: nothing was written."""


class Unreadable(StateError):
    """What stands in the store is not of the table's type: a newer schema, another type, or no table's bytes."""
