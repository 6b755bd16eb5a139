"""VNFs under test: in one process, on an in-memory network, in virtual time, with seeded faults.

``async with vnf.test(seed=7, loss=0.01) as net:`` is the short way, :class:`Network` the one for several VNFs. As a
pytest fixture: ``pytest_plugins = ["libvnf.testing.fixtures"]``. The guide is ``docs/guide/testing.md``.
"""

from .capture import Capture
from .clock import Clock, DeadlockError
from .fabric import Event
from .faults import Faults
from .harness import LeakError, Network, Served, network

__all__ = ["Capture", "Clock", "DeadlockError", "Event", "Faults", "LeakError", "Network", "Served", "network"]
