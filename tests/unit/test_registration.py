"""What an author's file may register, and the one line for each mistake."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from libvnf import VNF, ConfigError, Fixed, Request, Unsupported, local
from libvnf.config import parse_transport
from libvnf.failures import Reporter
from libvnf.server import request_type


class Attach(Request):
    imsi: str = ""


def plain(conn: Any, request: Any, packet: Any) -> None: ...


def typed(conn: Any, request: Attach, packet: Any) -> None: ...


def wrongly_typed(conn: Any, request: int, packet: Any) -> None: ...


def test_a_decorated_function_is_returned_unchanged() -> None:
    vnf = VNF("b")
    assert vnf.server("tcp://:0", framing=Fixed(4))(plain) is plain
    assert vnf.client("tcp://h:1").on_data(plain) is plain


def test_a_handler_with_the_wrong_parameters_is_refused_with_its_line() -> None:
    def two(conn: Any, packet: Any) -> None: ...

    with pytest.raises(ConfigError) as caught:
        VNF("b").server("tcp://:0")(two)
    line = two.__code__.co_firstlineno
    assert str(caught.value).startswith(f"{__file__}:{line}: ")
    assert str(caught.value).endswith("is called as two(conn, request, packet)")


def test_optional_and_variadic_parameters_are_welcome() -> None:
    def optional(conn: Any, request: Any, packet: Any, more: int = 0) -> None: ...

    def variadic(*args: Any) -> None: ...

    vnf = VNF("b")
    vnf.server("tcp://:0")(optional)
    vnf.server("tcp://:0")(variadic)


def test_a_session_must_be_async() -> None:
    def session(conn: Any) -> None: ...

    with pytest.raises(ConfigError, match="session must be async"):
        VNF("b").session("tcp://:0")(session)


def test_a_request_is_typed_by_the_annotation() -> None:
    assert request_type(typed) is Attach
    assert request_type(plain) is Request
    assert request_type(lambda conn, request, packet: None) is Request
    with pytest.raises(ConfigError, match=r"expected libvnf\.Request"):
        VNF("b").server("tcp://:0")(wrongly_typed)


@pytest.mark.parametrize("name", ["", "a b", "ü", "a/b"])
def test_a_vnf_has_a_simple_name(name: str) -> None:
    with pytest.raises(ConfigError, match="is not a name"):
        VNF(name)


def test_what_comes_later_is_refused_when_it_is_registered() -> None:
    vnf = VNF("b")
    with pytest.raises(Unsupported, match="sctp:// is not supported yet"):
        vnf.server("sctp://:36412")


def test_a_connection_before_the_start_is_refused() -> None:
    with pytest.raises(RuntimeError, match="does not run yet"):
        VNF("b").connect("tcp://127.0.0.1:1")


async def test_a_local_table_gets_puts_updates_and_deletes() -> None:
    table = VNF("b").table("hits", key=str, value=int, durability=local)
    assert await table.get("x") is None
    assert await table.update("x", lambda n: n + 1, default=0) == 1
    await table.put("x", 5)
    table.put_nowait("y", 1)
    assert (await table.get("x"), await table.delete("x"), await table.delete("x"), len(table)) == (5, True, False, 1)
    with pytest.raises(KeyError):
        await table.update("x", lambda n: n)
    with pytest.raises(ConfigError, match="value of type str, expected int"):
        await table.put("x", "five")  # type: ignore[arg-type]


def test_failures_are_logged_once_a_second_per_cause(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    reporter = Reporter(logging.getLogger("vnf.b"), clock=lambda: now)

    def fail(kind: type[Exception]) -> Exception:
        try:
            raise kind("why")
        except Exception as error:
            return error

    for _ in range(1000):
        reporter.report(None, None, fail(ValueError))
    reporter.report(None, None, fail(KeyError))
    assert len(caplog.records) == 2
    now = 1.5
    reporter.report(None, None, fail(ValueError))
    assert "999 more like it" in caplog.records[-1].getMessage()
    assert reporter.count == 1002


def test_the_causes_remembered_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "vnf.b")
    reporter = Reporter(logging.getLogger("vnf.b"))
    for number in range(1000):
        reporter.report(None, None, type(f"E{number}", (Exception,), {})())
    assert len(reporter._causes) == 256


def test_statistics_are_frozen() -> None:
    counters = VNF("b").statistics()
    with pytest.raises(TypeError):
        counters["core"] = 1  # type: ignore[index]
    assert set(counters) == {"core", "pool", "transports", "servers", "clients", "flows", "store", "tables", "failures"}


def test_a_timer_before_the_start_can_be_cancelled() -> None:
    vnf = VNF("b")
    vnf.every(1, lambda: None).cancel()
    with pytest.raises(ConfigError, match="expected more than 0 seconds"):
        vnf.every(0, lambda: None)
    with pytest.raises(ConfigError, match="is not a function"):
        vnf.after(1, None)  # type: ignore[arg-type]


async def test_a_unix_server_beside_a_port_opens_no_other_kernel_socket(tmp_path: Path) -> None:
    vnf = VNF("b", program=False)
    vnf.server(f"unix://{tmp_path}/s.sock")(plain)
    vnf.server("udp://:5000")(plain)
    listening = await vnf.start([parse_transport(f"memif:{tmp_path}/m.sock,address=10.0.0.2/24", {})])
    await vnf.close()
    assert [url for _, url, _ in listening] == [f"unix://{tmp_path}/s.sock", "udp://10.0.0.2:5000"]
