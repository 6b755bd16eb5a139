"""``vnf load``: requests at full speed or on a schedule, and the far end of a chain that answers them.

The work is native (``native/src/load/``); here are the options, the line of progress and the table. The options go
down as one flat dictionary, under the parameters' names, and are checked there (``options.rs``).
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import click

__all__ = ["load", "table"]

QUANTILES = {"p50": "p50_us", "p90": "p90_us", "p99": "p99_us", "p99.9": "p999_us", "max": "max_us"}
"""Column → key of the report."""


class ProgressLine:
    """One line that overwrites itself on a terminal; elsewhere a line per second. Always on stderr."""

    def __init__(self, stream: IO[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._rewrites = stream.isatty()
        self._next = clock() + 1.0
        self._shown = False

    def show(self, progress: dict[str, Any]) -> None:
        """Called about ten times a second."""
        now = self._clock()
        if not self._rewrites and now < self._next:
            return
        self._next = now + 1.0
        line = f"{progress['phase']:10} {progress['seconds']:7.1f} s  {progress['rate']:12,.0f} /s"
        if progress["phase"] != "responding":
            line += (
                f"  p50 {progress['p50_us']:,.1f} µs  p99 {progress['p99_us']:,.1f} µs  errors {progress['errors']:,}"
            )
        self._stream.write(f"\r{line}\x1b[K" if self._rewrites else f"{line}\n")
        self._stream.flush()
        self._shown = True

    def end(self) -> None:
        if self._shown and self._rewrites:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM are remembered, not raised; a second one acts as ever."""
    seen = False

    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def remember(number: int, frame: object) -> None:
        nonlocal seen
        seen = True
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, remember)
    try:
        yield lambda: seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def table(report: dict[str, Any], *, drove: bool) -> str:
    """The report as the text a person reads."""
    if not drove:
        return f"echoed {report['echoed']:,} messages over {report['connections_accepted']:,} accepted connections"
    seconds = f"in {report['seconds']:.2f} s"
    lines = [
        f"{report['rate']:,.0f} requests/s   ({report['requests']:,} {seconds},"
        f" {report['connections_opened']:,} connections opened, {report['cpu_seconds']:.2f} s of cpu)",
        "",
        "latency µs " + "".join(f"{name:>12}" for name in ["mean", *QUANTILES]),
        "           " + "".join(f"{report[key]:>12,.1f}" for key in ["mean_us", *QUANTILES.values()]),
    ]
    failures = dict(report["errors"])
    if report["unsent"]:
        failures["unsent (scheduled, never sent)"] = report["unsent"]
    if failures:
        lines += ["", "errors", *(f"  {count:>12,}  {name}" for name, count in failures.items())]
    return "\n".join(lines)


def write_json(target: str, report: dict[str, Any]) -> None:
    text = json.dumps(report, indent=2) + "\n"
    if target == "-":
        click.echo(text, nl=False)
    else:
        Path(target).write_text(text)


@click.command()
@click.argument("endpoint", required=False)
@click.option("--respond", multiple=True, metavar="ENDPOINT", help="Answer here, echoing every message; repeatable.")
@click.option(
    "--transport",
    default="kernel",
    show_default=True,
    metavar="TRANSPORT",
    help="kernel, or memif:PATH,address=10.0.0.1/24,… (TCP and UDP; address may be repeated: the first one that leads "
    "there drives, for TCP the next ones when its ports are used up).",
)
@click.option("--connections", default=1, show_default=True, metavar="N", help="Sockets, or source ports.")
@click.option(
    "--outstanding",
    type=int,
    metavar="N",
    help="The most requests in flight, over all connections.  [default: one per connection; with --rate at least 1024]",
)
@click.option(
    "--requests-per-connection",
    type=int,
    metavar="N",
    help="Close a connection after N requests and open another; 1 is a connection per request.  [default: keep it]",
)
@click.option(
    "--rate",
    type=float,
    metavar="R",
    help="R requests per second on a schedule, late or not: latency counts from when each was due.",
)
@click.option(
    "--size", default=128, show_default=True, metavar="BYTES", help="Of a request, and of a reply on a stream."
)
@click.option("--id", metavar="OFFSET:SIZE", help="Match replies by a big-endian id there, in any order.")
@click.option("--verify", is_flag=True, help="A reply must equal its request byte for byte.")
@click.option("--duration", "duration_s", default=10.0, show_default=True, metavar="S", help="Measured seconds.")
@click.option("--warmup", "warmup_s", default=1.0, show_default=True, metavar="S", help="Seconds before those.")
@click.option(
    "--timeout", "timeout_s", default=1.0, show_default=True, metavar="S", help="A reply later than this is lost."
)
@click.option("--reset", is_flag=True, help="Close connections with a reset: no TIME_WAIT keeps ports busy.")
@click.option("--cpu", type=int, metavar="N", help="Run on this cpu only.")
@click.option("--capture", metavar="FILE", help="Write what comes and goes by the port, as pcapng.")
@click.option("--json", "json_target", metavar="FILE", help="Write the report as JSON; - for standard output.")
def load(json_target: str | None, **options: Any) -> None:
    """Send requests to ENDPOINT and measure the replies.

    ENDPOINT is tcp://host:port, udp://host:port or unix://path. With --respond the same process is also, or only, the
    far end that answers: both ends of a chain A-B-C with B under test.

    \b
      vnf load tcp://10.0.0.2:5000 --connections 20 --requests-per-connection 1 --respond tcp://10.0.0.3:5000
      vnf load udp://10.0.0.2:5000 --transport memif:/run/b.sock,address=10.0.0.1/24,address=10.0.0.3/24 \\
               --respond udp://10.0.0.3:5000 --outstanding 256
      vnf load tcp://10.0.0.2:5000 --transport memif:/run/b.sock,address=10.0.0.1/24,address=10.0.0.3/24 \\
               --connections 90000 --rate 50000
      vnf load --respond udp://:5000

    Ctrl-C ends the run and prints what was measured. The exit code is 1 when no request was answered.
    """
    from .. import _native

    line = ProgressLine(sys.stderr)
    options["respond"] = list(options["respond"])
    with interrupts() as interrupted:

        def on_progress(progress: dict[str, Any]) -> bool:
            line.show(progress)
            return interrupted()

        try:
            report = _native.run_load(options, on_progress)
        except (ValueError, OverflowError, OSError) as error:
            raise click.UsageError(str(error)) from None
        finally:
            line.end()
    drove = options["endpoint"] is not None
    click.echo(table(report, drove=drove), err=json_target == "-")
    if json_target is not None:
        try:
            write_json(json_target, report)
        except OSError as error:
            raise click.UsageError(f"--json {json_target}: {error.strerror}") from None
    if drove and not report["requests"]:
        sys.exit(1)
