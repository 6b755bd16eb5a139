"""Who may know whom, in Python and in Rust. A new edge is a decision: it is made here, in a table, with its reason."""

import ast
import re
from pathlib import Path

import pytest

from tests.meta.tree import files, imports, modules, parse, read

# The native module is imported by few; everything else uses their public classes. A name ending in a dot is a package.
NATIVE = {
    "libvnf": "re-exports Packet and the framings, which have no Python half",
    "libvnf.config": "a port's options have one parser, and it is native",
    "libvnf.connection": "Connection is the Python half of a native class",
    "libvnf.packet": "frames are built and parsed natively",
    "libvnf.request": "Request is the Python half of a native class",
    "libvnf.client": "requests and replies are matched natively",
    "libvnf.frames": "a port's handler is a native Connection that stands for the port",
    "libvnf.server": "a server is a native Endpoint with the author's handlers",
    "libvnf.vnf": "owns the Core that everything of one VNF hangs on",
    "libvnf.transport.": "feeds the native protocols, or opens native ports",
    "libvnf.testing.": "an in-memory network under the same native dispatch",
    "libvnf.tracing": "a trace is taken by the native engine",
    "libvnf.flows": "the rules of a VNF stand in the native table",
    "libvnf.state.redis": "the store's client is native",
    "libvnf.cli.bridge": "vnf bridge is the native forwarding loop's command line",
    "libvnf.cli.load": "vnf load is the native load generator's command line",
}

# From the bottom up. A module imports from its own layer and those below it; `if TYPE_CHECKING:` is free.
LAYERS = (
    ("errors", "failures", "handlers", "task"),
    ("config", "flow", "framing", "packet", "replica"),
    ("transport",),
    ("connection", "request"),
    ("client", "flows", "server", "state"),
    ("frames",),
    ("cluster", "plugin"),
    ("control", "runtime", "tracing", "vnf"),
    ("api", "testing"),
    ("cli", "__main__"),
)
# Imports upwards, made inside the function that needs them.
UPWARDS = {
    ("runtime", "cli"): "`python b.py` takes the options of `vnf run b.py`",
    ("vnf", "testing"): "vnf.test() is the public door to the test network",
}

# Where the crate may be unsafe, besides tests; each block has its SAFETY argument (clippy sees to that).
UNSAFE = {
    "port": "memory shared with a peer, and the system calls that share it",
    "packet/prefetch": "a hint to the processor, which cannot fault",
    "packet/pool": "slots of one allocation, handed out and taken back",
    "stack/tcp/arena": "ring buffers for connections, out of one mapping",
    "stack/tcp/smoltcp": "those rings lent to the protocol engine",
    "py": "buffers lent to Python, coroutines stepped by its C API",
    "load/sys": "system calls that std does not offer, for the load generator and kernel sockets",
    "splice": "splice(2) between two sockets",
}

# Bytes and clocks come in as arguments, results go out.
PURE = (
    "libvnf.config",
    "libvnf.errors",
    "libvnf.flow",
    "libvnf.handlers",
    "libvnf.state.cache",
    "libvnf.state.durability",
    "libvnf.state.memory",
    "libvnf.state.record",
    "libvnf.state.store",
    "libvnf.state.table",
)
# Not even in a package that is pure otherwise.
OUTSIDE = {
    "libvnf.state.redis": "hands a native thread's answers to the loop",
    "libvnf.state.embedded": "finds or starts a server",
    "libvnf.state.keeper": "a process of its own, beside that server",
}
IMPURE = {"asyncio", "random", "secrets", "select", "selectors", "socket", "threading", "time", "uvloop"}


def belongs(module: str, names: tuple[str, ...] | dict[str, str]) -> bool:
    return any(module == n or (n.endswith(".") and f"{module}.".startswith(n)) for n in names)


def layer(module: str) -> int | None:
    """The layer of a module of libvnf; None for the package itself, which exports from all of them."""
    part = module.split(".")[1] if "." in module else ""
    return next((number for number, names in enumerate(LAYERS) if part in names), None)


LIBVNF = modules("libvnf")


def test_only_the_listed_modules_know_the_native_one() -> None:
    importers = {
        m for m, path in modules("libvnf", "lb", "examples").items() for i in imports(path) if _is_native(i.module)
    }
    assert importers, "nothing imports libvnf._native: this test looks in the wrong place"
    assert sorted(m for m in importers if not belongs(m, NATIVE)) == []
    assert [name for name in NATIVE if not any(belongs(m, (name,)) for m in importers)] == [], "listed, and not in need"


def _is_native(module: str) -> bool:
    return module == "libvnf._native" or module.startswith("libvnf._native.")


@pytest.mark.parametrize("module", sorted(m for m in LIBVNF if "." in m))
def test_imports_of_libvnf_go_down(module: str) -> None:
    mine = layer(module)
    assert mine is not None, f"{module} has no place in LAYERS"
    for found in imports(LIBVNF[module]):
        if found.typing_only or not found.module.startswith("libvnf") or _is_native(found.module):
            continue
        where = f"{LIBVNF[module]}:{found.line}"
        theirs = layer(found.module)
        assert theirs is not None, f"{where} imports from libvnf itself: name the module"
        edge = (module.split(".")[1], found.module.split(".")[1])
        assert theirs <= mine or edge in UPWARDS, f"{where} imports upwards: {edge[0]} → {edge[1]}"


def test_pure_modules_know_no_clock_no_chance_and_no_network() -> None:
    pure = {m: p for m, p in modules("libvnf", "lb", "examples").items() if belongs(m, PURE) and m not in OUTSIDE}
    assert all(any(belongs(m, (name,)) for m in pure) for name in PURE)
    found = [f"{p}:{i.line} {i.module}" for p in pure.values() for i in imports(p) if i.module.split(".")[0] in IMPURE]
    assert found == []


def test_libvnf_knows_neither_the_load_balancer_nor_the_examples() -> None:
    found = [
        f"{path}:{i.line} {i.module}"
        for path in LIBVNF.values()
        for i in imports(path)
        if i.module.split(".")[0] in {"lb", "examples", "tests", "benchmarks"}
    ]
    assert LIBVNF
    assert found == []


def test_the_load_balancer_and_the_cluster_do_not_know_each_other() -> None:
    for path in modules("lb").values():
        assert not [i for i in imports(path) if i.module.startswith("libvnf.cluster")], path


def test_examples_and_load_balancer_use_public_names_only() -> None:
    outside = modules("examples", "lb")
    for module, path in outside.items():
        for i in imports(path):
            if i.module.split(".")[0] != "libvnf" or (_is_native(i.module) and belongs(module, NATIVE)):
                continue
            private = [part for part in (*i.module.split("."), i.name or "") if part.startswith("_")]
            assert not private, f"{path}:{i.line} uses {private[0]}"
            if i.name not in (None, "*") and i.module in LIBVNF:
                assert i.name in _exports(i.module), f"{path}:{i.line}: {i.module}.__all__ does not have {i.name}"


def _exports(module: str) -> list[str]:
    for node in parse(LIBVNF[module]).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return list(ast.literal_eval(node.value))
    raise AssertionError(f"{module} has no __all__")


def test_only_config_reads_the_environment() -> None:
    readers = set()
    for module, path in modules("libvnf", "lb", "examples").items():
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Attribute) and node.attr in {"environ", "environb", "getenv", "getenvb"}:
                readers.add(module)
        if any(i.module == "os" and i.name in {"environ", "getenv"} for i in imports(path)):
            readers.add(module)
    assert readers == {"libvnf.config"}


# --- Rust -------------------------------------------------------------------------------------------------------------

CRATE = Path("native/src")
RUST = {p.relative_to(CRATE): read(p) for p in files(".rs") if p.is_relative_to(CRATE)}


def in_rust(path: Path, *places: str) -> bool:
    """``port/`` is everything in that folder, ``packet/pool`` that file or folder."""
    return any(f"{path.with_suffix('').as_posix()}/".startswith(place.rstrip("/") + "/") for place in places)


def product(path: Path) -> str:
    """The source of ``path`` without its tests: nothing, when it is made for tests and fuzzing alone."""
    if {"tests", "fuzzing"} & {path.stem, *path.parts}:
        return ""
    return RUST[path].split("#[cfg(test)]\nmod ", 1)[0]


def test_only_py_knows_python() -> None:
    assert RUST
    assert [str(p) for p, text in RUST.items() if "pyo3" in text and not in_rust(p, "py")] == []


def test_unsafe_stays_where_memory_is_shared() -> None:
    allowed = [p for p, text in RUST.items() if re.search(r"allow\([^)]*unsafe_code", text)]
    assert [place for place in UNSAFE if not any(in_rust(p, place) for p in allowed)] == [], "listed, and not in need"
    assert [str(p) for p in allowed if not in_rust(p, *UNSAFE)] == []


def test_the_protocol_code_of_the_crate_is_without_io_and_clock() -> None:
    ways_out = re.compile(r"Instant::now|SystemTime|std::net::(Tcp|Udp)|std::fs|std::thread|libc::|\brand::")
    wire = ("bytes", "command", "header", "resp", "script", "slots")
    client = ("cluster", "counters", "lease", "link", "news", "operation", "settings", "topology")
    store = [f"state/{name}" for name in (*wire, *client)]
    pure = [
        p
        for p in RUST
        if in_rust(p, "packet", "framing", "stack", "flow", "steer", *store)
        and not in_rust(p, "packet/pool", "stack/tcp/arena", "stack/bench")
    ]
    assert any(product(p) for p in pure)
    assert {str(p): m[0] for p in pure if (m := ways_out.search(product(p)))} == {}


# --- both -------------------------------------------------------------------------------------------------------------


def test_no_module_is_over_700_lines() -> None:
    sizes = {str(p): read(p).count("\n") for p in files(".py", ".pyi", ".rs")}
    assert sizes
    assert {p: lines for p, lines in sizes.items() if lines > 700} == {}
