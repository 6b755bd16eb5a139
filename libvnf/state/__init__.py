"""State that outlives a request: tables. ``local`` ones so far; the others come with the state layer."""

from .table import Durability, Table, local

__all__ = ["Durability", "Table", "local"]
