"""The pytest fixture ``vnf_network``: ``pytest_plugins = ["libvnf.testing.fixtures"]`` in a ``conftest.py``.

Needs pytest-asyncio. ``@pytest.mark.vnf_network(seed=7, loss=0.01)`` gives the options of
:class:`~libvnf.testing.Network`; without a seed the test's own name is it. A test that failed shows the network's last
events, and is not asked for leaks.
"""

from collections.abc import AsyncIterator, Generator
from typing import Any

import pytest
import pytest_asyncio

from .harness import Network

__all__ = ["vnf_network"]

_network = pytest.StashKey[Network]()
_failed = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "vnf_network(**options): options of libvnf.testing.Network for the fixture vnf_network"
    )


@pytest_asyncio.fixture
async def vnf_network(request: pytest.FixtureRequest) -> AsyncIterator[Network]:
    """An entered :class:`~libvnf.testing.Network`, left when the test ends."""
    marker = request.node.get_closest_marker("vnf_network")
    options: dict[str, Any] = {"seed": request.node.name, **(marker.kwargs if marker else {})}
    async with Network(**options) as net:
        request.node.stash[_network] = net
        yield net
        if request.node.stash.get(_failed, False):
            net.check_leaks = False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    net = item.stash.get(_network, None)
    if net is not None and call.when == "call" and report.failed:
        item.stash[_failed] = True
        report.sections.append(("in-memory network", net.story()))
    return report
