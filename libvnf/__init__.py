"""libvnf: virtual network functions in Python, asyncio outside and a native data plane inside."""

from ._native import Batch, Delimiter, Field, Fixed, Frame, LengthPrefixed, Packet
from .client import Client
from .config import Limits
from .connection import Connection
from .errors import (
    AddressInUse,
    BufferFull,
    ConfigError,
    DurabilityUnknown,
    FlowsFull,
    FramingError,
    LockLost,
    MessageTooLong,
    StateConflict,
    StateError,
    StateFull,
    StoreUnavailable,
    TransportError,
    Unreadable,
    Unsupported,
    VNFError,
)
from .frames import Frames
from .request import Request, Timer
from .server import Server
from .state import Durability, Held, Record, Table, local, replicated, write_back, write_through
from .vnf import VNF

__all__ = [
    "VNF",
    "AddressInUse",
    "Batch",
    "BufferFull",
    "Client",
    "ConfigError",
    "Connection",
    "Delimiter",
    "Durability",
    "DurabilityUnknown",
    "Field",
    "Fixed",
    "FlowsFull",
    "Frame",
    "Frames",
    "FramingError",
    "Held",
    "LengthPrefixed",
    "Limits",
    "LockLost",
    "MessageTooLong",
    "Packet",
    "Record",
    "Request",
    "Server",
    "StateConflict",
    "StateError",
    "StateFull",
    "StoreUnavailable",
    "Table",
    "Timer",
    "TransportError",
    "Unreadable",
    "Unsupported",
    "VNFError",
    "local",
    "replicated",
    "write_back",
    "write_through",
]
