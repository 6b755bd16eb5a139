"""libvnf: virtual network functions in Python, asyncio outside and a native data plane inside."""

from ._native import Batch, Delimiter, Field, Fixed, Frame, LengthPrefixed, Packet
from .client import Client
from .config import Limits
from .connection import Connection
from .errors import (
    AddressInUse,
    BufferFull,
    ConfigError,
    FlowsFull,
    FramingError,
    MessageTooLong,
    StateError,
    StateFull,
    TransportError,
    Unsupported,
    VNFError,
)
from .frames import Frames
from .request import Request, Timer
from .server import Server
from .state import Table, local
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
    "Field",
    "Fixed",
    "Frame",
    "FlowsFull",
    "Frames",
    "FramingError",
    "LengthPrefixed",
    "Limits",
    "MessageTooLong",
    "Packet",
    "Request",
    "Server",
    "StateError",
    "StateFull",
    "Table",
    "Timer",
    "TransportError",
    "Unsupported",
    "VNFError",
    "local",
]
