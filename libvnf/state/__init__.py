"""State that outlives a request: tables, of this replica alone or in a store that all replicas share."""

from .durability import Durability, local, replicated, write_back, write_through
from .held import Held
from .record import Record
from .table import Table
from .tables import Tables

__all__ = ["Durability", "Held", "Record", "Table", "Tables", "local", "replicated", "write_back", "write_through"]
