"""Loads a VNF's file and runs it: one process, one loop, until a signal.

SIGTERM drains: accept for ``grace_s``, finish for ``drain_s``, reset the rest, exit 0. Ctrl-C stops at once, exit 130.
A second signal does not wait for anything. Imports are lazy because a replica must be ready in 0.3 s.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .config import Config
from .control import Control, Question
from .errors import ConfigError, VNFError

if TYPE_CHECKING:
    from .vnf import VNF

__all__ = ["LoadError", "configuration", "configured", "load", "run", "run_program"]

USAGE = 2
INTERRUPTED = 130
STORE_S = 1.0
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class LoadError(VNFError):
    """The file cannot be loaded, or holds no VNF; the message is what to print."""


# The one module state: what the file being loaded, or this program, is run with.
_active: Config | None = None
_loading = False
_made: list[VNF] = []


def configuration(program: bool) -> Config:
    """The configuration of a VNF that is being made; ``program``: by the file that Python itself was given."""
    global _active
    if _active is None and program:
        from .cli.run import read_options

        _active = _or_exit(lambda: read_options(sys.argv[1:], strict=False).config())
    return _active if _active is not None else Config.read()


@contextmanager
def configured(config: Config) -> Iterator[None]:
    """VNFs made inside have this configuration."""
    global _active
    before, _active = _active, config
    try:
        yield
    finally:
        _active = before


def loaded(vnf: VNF) -> None:
    """Each VNF says that it was made."""
    if _loading:
        _made.append(vnf)


def _or_exit(make: Callable[[], Config]) -> Config:
    try:
        return make()
    except VNFError as error:
        complain(error)
        sys.exit(USAGE)


def complain(error: BaseException) -> None:
    """One clear line."""
    print(error, file=sys.stderr, flush=True)


# --- commands that wait ------------------------------------------------------------------------------------------


@contextmanager
def terminable() -> Iterator[None]:
    """Inside, SIGTERM is what Ctrl-C is: ``KeyboardInterrupt``. Not where it is ignored."""
    before = signal.getsignal(signal.SIGTERM)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def pause(seconds: float) -> None:
    """Sleeps until a signal: ``KeyboardInterrupt``. ``time.sleep`` would sleep on when that came on its way in."""
    ends = {number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    try:
        if signal.sigtimedwait(ends, seconds) is not None:
            raise KeyboardInterrupt
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- loading -----------------------------------------------------------------------------------------------------


def load(spec: str, config: Config) -> VNF:
    """The VNF in ``FILE[:APP]``; APP is a variable or a VNF's name, and needed when there are several."""
    global _loading
    path, app = (spec, "") if os.path.exists(spec) or ":" not in spec else tuple(spec.rsplit(":", 1))
    if not os.path.exists(path):
        raise LoadError(f"{path}: no such file")
    if os.path.isdir(path):
        raise LoadError(f"{path}: is a directory; name the file of a VNF")
    _loading = True
    _made.clear()
    try:
        with configured(config):
            module = _import(path)
    finally:
        _loading = False
    return _choose(path, app, module)


def _import(path: str) -> ModuleType:
    module = ModuleType("__vnf__")
    module.__file__ = os.path.abspath(path)
    sys.modules["__vnf__"] = module
    sys.path.insert(0, os.path.dirname(module.__file__))
    try:
        with open(path, "rb") as stream:
            code = compile(stream.read(), path, "exec", dont_inherit=True)
        exec(code, module.__dict__)
    except ConfigError as error:
        raise error.at(file=path, line=_line(path, error)) from None
    except VNFError as error:
        raise LoadError(f"{path}:{_line(path, error)}: {error}") from None
    except SyntaxError as error:
        raise LoadError(f"{error.filename or path}:{error.lineno}: {type(error).__name__}: {error.msg}") from None
    except OSError as error:
        if error.filename == path:
            raise LoadError(f"{path}: cannot be read: {error.strerror}") from None
        raise LoadError(_brief(path, error)) from None
    except ValueError as error:
        raise LoadError(_brief(path, error)) from None
    except SystemExit as error:
        raise LoadError(f"{path}: called exit({error.code!r}) while it was loaded") from None
    except Exception as error:
        raise LoadError(_brief(path, error)) from None
    return module


def _brief(path: str, error: BaseException) -> str:
    """The clear line first, then the author's own frames."""
    import traceback

    here = os.path.dirname(__file__)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(here)]
    head = f"{path}:{_line(path, error)}: {type(error).__name__}: {error}\n"
    return head + "".join(traceback.format_list(frames[-5:])).rstrip()


def _line(path: str, error: BaseException) -> int | None:
    """The line of the author's file that led to the error."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _choose(path: str, app: str, module: ModuleType) -> VNF:
    from .vnf import VNF

    named = {name: value for name, value in vars(module).items() if isinstance(value, VNF)}
    if app:
        found = named.get(app) or next((vnf for vnf in _made if vnf.name == app), None)
        if found is None:
            raise LoadError(f"{path}: there is no VNF {app!r}: {', '.join(named) or 'none is defined'}")
        return found
    vnfs = list(dict.fromkeys([*named.values(), *_made]))
    if not vnfs:
        raise LoadError(f'{path}: defines no VNF: expected one, such as vnf = VNF("b")')
    if len(vnfs) > 1:
        listed = ", ".join(f"{path}:{vnf.name}" for vnf in vnfs)
        raise LoadError(f"{path}: defines several VNFs: name one: {listed}")
    return vnfs[0]


# --- running -----------------------------------------------------------------------------------------------------


def run_program(vnf: VNF) -> None:
    """``vnf.run()``: only registers under ``vnf run``, else runs with this program's options and exits."""
    if _loading:
        return
    from .cli.run import read_options

    def make() -> Config:
        options = read_options(sys.argv[1:], strict=True)
        set_up_logging(options.log_level)
        return options.config()

    vnf.config = _or_exit(make)
    try:
        code = run(vnf)
    except VNFError as error:
        complain(error)
        code = USAGE
    sys.exit(code)


def set_up_logging(level: str) -> None:
    logging.basicConfig(level=level.upper(), format=LOG_FORMAT, stream=sys.stderr)
    # asyncio reports each slow callback and each refused accept; ours are counted.
    logging.getLogger("asyncio").setLevel(max(logging.WARNING, logging.getLogger().level))


def run(vnf: VNF) -> int:
    """Serves until a signal; returns the exit code. Raises ``VNFError`` when it cannot start."""
    try:
        import uvloop

        make_loop: Callable[[], asyncio.AbstractEventLoop] | None = uvloop.new_event_loop
        kind = "uvloop"
    except ImportError:
        make_loop, kind = None, "asyncio"
    bound_by_descriptors(vnf)
    with asyncio.Runner(loop_factory=make_loop) as runner:
        loop = runner.get_loop()
        signals = Signals(loop)
        try:
            return runner.run(_serve(vnf, kind, signals))
        finally:
            signals.restore()


class Signals:
    """Turns SIGTERM and SIGINT into a stop; the second one leaves even when a handler holds the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.first: asyncio.Future[int] = loop.create_future()
        self.second: asyncio.Future[int] = loop.create_future()
        self._loop = loop
        self._count = 0
        self._before = {number: signal.signal(number, self._caught) for number in (signal.SIGTERM, signal.SIGINT)}

    def _caught(self, number: int, frame: Any) -> None:
        self._count += 1
        if self._count >= 3:
            os._exit(128 + number)
        self._loop.call_soon_threadsafe(self._tell, number)

    def _tell(self, number: int) -> None:
        for future in (self.first, self.second):
            if not future.done():
                future.set_result(number)
                return

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def bound_by_descriptors(vnf: VNF) -> None:
    """Raises the soft limit of open files to the hard one, and keeps max_connections below it."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):
            pass  # a container may forbid it; what there is counts
    if any(port.type == "kernel" for port in vnf.config.transports) and soft != resource.RLIM_INFINITY:
        vnf.limits = replace(vnf.limits, max_connections=min(vnf.limits.max_connections, max(16, soft - 64)))


def say(vnf: VNF, text: str) -> None:
    try:
        print(f"{vnf.name}: {text}", flush=True)
    except OSError:
        pass  # whoever read our output has gone; that stops no traffic


def _age_s() -> float:
    """Since this process began."""
    try:
        with open("/proc/self/stat") as stream:
            ticks = int(stream.read().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return time.process_time()


async def _serve(vnf: VNF, kind: str, signals: Signals) -> int:
    listening = await vnf.start()
    control = Control(vnf.name, questions(vnf), vnf.log)
    await control.open()
    try:
        return await _serve_until(vnf, kind, signals, [(place, transport) for _, place, transport in listening])
    finally:
        control.close()


def questions(vnf: VNF) -> dict[str, Question]:
    """What the control socket answers."""
    from .tracing import Trace

    return {
        "ports": lambda asked: {"vnf": vnf.name, "pid": os.getpid(), "up_s": _age_s(), **vnf.ports()},
        "trace": lambda asked: Trace(vnf.engine(), asked),
    }


async def _serve_until(vnf: VNF, kind: str, signals: Signals, places: list[tuple[str, str]]) -> int:
    for place, transport in places:
        say(vnf, f"serving {place} ({transport})")
    say(vnf, f"ready in {_age_s():.2f} s ({kind}, pid {os.getpid()})")
    over = asyncio.ensure_future(vnf.wait_closed())
    await asyncio.wait((signals.first, over), return_when=asyncio.FIRST_COMPLETED)
    over.cancel()
    if vnf.closed:
        say(vnf, "closed by itself")
        return 0
    if signals.first.result() == signal.SIGINT:
        await vnf.close()
        return INTERRUPTED
    until_s = asyncio.get_running_loop().time() + vnf.limits.grace_s + vnf.limits.drain_s
    reset = await drain(vnf, signals.second)
    await store(vnf, until_s, signals.second)
    await vnf.close()
    if reset:
        say(vnf, f"drained; {reset} connection{'s' if reset > 1 else ''} reset after {vnf.limits.drain_s:g} s")
    else:
        say(vnf, "drained")
    return 0


async def store(vnf: VNF, until_s: float, at_once: asyncio.Future[int]) -> None:
    """What tables have not stored goes to the store, in what is left of ``drain_s``: a second at the least, for what is
    not stored is lost. Says what that is."""
    until_s = max(until_s, asyncio.get_running_loop().time() + STORE_S)
    storing = asyncio.ensure_future(vnf.tables.drain(until_s))
    at_once.add_done_callback(lambda _: storing.cancel())
    await asyncio.wait([storing])
    if not storing.cancelled() and (error := storing.exception()) is not None:
        say(vnf, f"storing ended with {error!r}")
    for name, count in vnf.tables.unstored.items():
        say(vnf, f"table {name}: {count} change{'s' if count > 1 else ''} not stored")


async def drain(vnf: VNF, at_once: asyncio.Future[int]) -> int:
    """Grace, then no new connections; closes what is idle as it becomes so. Returns how many are left to reset."""
    core, limits, loop = vnf.core, vnf.limits, asyncio.get_running_loop()
    served = vnf.endpoints()

    def open_ones() -> list[Any]:
        """Connections that peers opened, closing ones too: they may have bytes to send yet.

        Those that the VNF opened serve the requests in flight until the end.
        """
        return [one for one in core.connections() if one.endpoint in served]

    vnf.tables.hurry()
    say(vnf, f"draining: {core.open_connections} connections, {core.open_requests} requests")
    await asyncio.wait([at_once], timeout=limits.grace_s)
    vnf.refuse()
    deadline = loop.time() + limits.drain_s
    while not at_once.done():
        for connection in (left := open_ones()):
            if not connection.closed and not connection.busy:
                connection.close()
        if not left and not core.open_requests:
            return 0
        if loop.time() >= deadline:
            break
        # Every connection is looked at: less often when there are many.
        await asyncio.wait([at_once], timeout=min(0.01 + len(left) / 100_000, deadline - loop.time()))
    return len(open_ones())
