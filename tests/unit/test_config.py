"""Settings and endpoints: what is accepted, and the exact words of what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libvnf.config import Config, EndpointURL, Limits, line_of, parse_transport
from libvnf.errors import ConfigError, Unsupported, VNFError

NONE: dict[str, str] = {}


def read(tmp_path: Path, text: str, **options: object) -> Config:
    file = tmp_path / "vnf.toml"
    file.write_text(text)
    options.setdefault("environment", NONE)
    return Config.read(str(file), **options)  # type: ignore[arg-type]


def refusal(tmp_path: Path, text: str, **options: object) -> str:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text, **options)
    return str(caught.value).removeprefix(f"{tmp_path}/")


# --- endpoints


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("tcp://10.0.0.2:5000", "10.0.0.2", 5000),
        ("udp://:53", "", 53),
        ("tcp://[fd00::2]:65535", "fd00::2", 65535),
        ("sctp://mme:36412", "mme", 36412),
        ("tcp://localhost:0", "localhost", 0),
    ],
)
def test_an_endpoint_is_parsed_and_printed_back(text: str, host: str, port: int) -> None:
    url = EndpointURL.parse(text)
    assert (url.host, url.port, str(url)) == (host, port, text)


def test_a_unix_endpoint_is_a_path() -> None:
    url = EndpointURL.parse("unix:///run/vnf/b.sock")
    assert (url.scheme, url.path, str(url)) == ("unix", "/run/vnf/b.sock", "unix:///run/vnf/b.sock")


def test_an_endpoint_can_name_its_port() -> None:
    url = EndpointURL.parse("udp://10.0.0.2:5000?port=data0")
    assert (url.via, str(url)) == ("data0", "udp://10.0.0.2:5000?port=data0")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "tpc://h:1",
            "'tpc://h:1' is not an endpoint: expected tcp://, udp://, sctp:// or unix:// (did you mean tcp://?)",
        ),
        ("h:1", "'h:1' is not an endpoint: expected tcp://, udp://, sctp:// or unix://"),
        ("", "'' is not an endpoint: expected tcp://, udp://, sctp:// or unix://"),
        ("tcp://h", "'tcp://h' has no port: expected tcp://HOST:PORT"),
        ("tcp://h:65536", "'tcp://h:65536': port '65536' is not a number from 0 to 65535"),
        ("tcp://h:٣", "'tcp://h:٣': port '٣' is not a number from 0 to 65535"),
        ("tcp://fd00::2:1", "'tcp://fd00::2:1': an IPv6 address is written in brackets: tcp://[fd00::2]:1"),
        ("tcp://[h]:1", "'tcp://[h]:1': [h] is not an IPv6 address"),
        ("tcp://a b:1", "'tcp://a b:1': 'a b' is not a host name or an address"),
        ("udp://:53?data0", "'udp://:53?data0' is not an endpoint: only ?port=NAME may follow the port number"),
        ("unix://", "'unix://' has no path: expected unix:///run/vnf/b.sock"),
    ],
)
def test_a_wrong_endpoint_is_refused_in_these_words(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EndpointURL.parse(text)
    assert str(caught.value) == words


SHAPED = st.builds("{}://{}:{}".format, st.sampled_from(["tcp", "udp", "unix"]), st.text(), st.text())


@given(st.text(max_size=40) | SHAPED)
def test_any_text_is_an_endpoint_or_a_config_error(text: str) -> None:
    try:
        url = EndpointURL.parse(text)
    except ConfigError:
        return
    assert EndpointURL.parse(str(url)) == url


def test_sctp_is_known_and_not_supported_yet() -> None:
    with pytest.raises(Unsupported, match="sctp:// is not supported yet"):
        EndpointURL.parse("sctp://:36412").supported()


# --- the file


def test_an_error_names_file_line_and_key(tmp_path: Path) -> None:
    text = "[vnf.a]\n\n[vnf.b]\nserves = 'tpc://10.0.0.2:5000'\n"
    assert refusal(tmp_path, text) == (
        "vnf.toml:4: vnf.b.serves: 'tpc://10.0.0.2:5000' is not an endpoint: "
        "expected tcp://, udp://, sctp:// or unix:// (did you mean tcp://?)"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[vnf.b]\nserves = 'tcp://:1'", "vnf.toml:2: vnf.b.serves: not supported yet"),
        ("[vnf.b]\nreplicas = 3", "vnf.toml:2: vnf.b.replicas: not supported yet"),
        ("[store]\nurl = 'x'", "vnf.toml:1: store: unknown table: expected vnf, port or state (did you mean state?)"),
        ("state = 1", "vnf.toml:1: state: expected a table: [state]"),
        ("[state]\nurk = 'x'", "vnf.toml:2: state.urk: unknown key: expected url (did you mean url?)"),
        (
            "[state]\nurl = 'redys://:secret@h'",
            "vnf.toml:2: state.url: 'redys://…@h' is not a store: expected one of memory://, redis+embedded://DIR, "
            "redis://HOST:PORT, rediss://HOST:PORT, redis-cluster://HOST:PORT,HOST:PORT, "
            "rediss-cluster://HOST:PORT,HOST:PORT (did you mean redis://?)",
        ),
        (
            "[vnf.b]\nsetings = {}",
            "vnf.toml:2: vnf.b.setings: unknown key: "
            "expected [vnf.b.settings] or [vnf.b.limits] (did you mean settings?)",
        ),
        ("[prot.x]\n", "vnf.toml:1: prot: unknown table: expected vnf, port or state (did you mean port?)"),
        ("vnf = 3", "vnf.toml:1: vnf: expected tables such as [vnf.NAME]"),
        ("[port.d]\ntype = 'tap'", "vnf.toml:1: port.d.interface: missing: the name of the network interface"),
        ("[port.d]\ntype = 'pcap'", "vnf.toml:1: port.d.input: missing: a capture to read, to write, or both"),
        ("[port.d]\n", "vnf.toml:1: port.d.type: missing: expected one of kernel, memif, af_xdp, tap, pcap"),
        ("[port.d]\ntype='memif'", "vnf.toml:1: port.d.path: missing: the path of the memif control socket"),
        (
            "[port.d]\ntype='memif'\npath='x'\nrole='sever'",
            "vnf.toml:4: port.d.role: 'sever': expected server or client",
        ),
        (
            "[port.d]\ntype='memif'\npath='x'\naddress=['10.0.0.2']",
            "vnf.toml:4: port.d.address: ['10.0.0.2']: '10.0.0.2' has no prefix length: "
            "expected an address such as 10.0.0.2/24",
        ),
        (
            "[port.d]\ntype='memif'\npath='x'\nring_slots=1000",
            "vnf.toml:4: port.d.ring_slots: 1000: expected a power of two from 2 to 16384",
        ),
        ("[vnf.b\n", "vnf.toml:1: not TOML: Expected ']' at the end of a table declaration"),
    ],
)
def test_a_wrong_file_is_refused_in_these_words(tmp_path: Path, text: str, words: str) -> None:
    assert refusal(tmp_path, text) == words


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        Config.read("/nowhere/vnf.toml", environment=NONE)
    assert str(caught.value) == "/nowhere/vnf.toml: cannot be read: No such file or directory"


@given(st.text(max_size=200))
def test_any_text_is_a_file_or_a_config_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.getbasetemp() / "any.toml"
    file.write_text(text, errors="replace")
    try:
        Config.read(str(file), environment=NONE)
    except ConfigError as error:
        assert str(error).startswith(f"{file}:")


def test_the_line_is_found_in_tables_dotted_keys_and_inline_tables() -> None:
    text = '[a."b"]\nx = 1\nc.d = 2\ne = { f = 3 }\n[[g]]\n'
    assert line_of(text, ("a", "b", "x")) == 2
    assert line_of(text, ("a", "b", "c", "d")) == 3
    assert line_of(text, ("a", "b", "e", "f")) == 4
    assert line_of(text, ("a", "b", "missing")) == 1
    assert line_of(text, ("nowhere",)) is None


# --- settings


SETTINGS = "[vnf.b.settings]\nc = 'tcp://10.0.0.3:5000'\nn = 3\nr = 2\nf = true\nl = ['x']\n"


def test_command_line_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    assert Config.read(environment=NONE).setting("b", "n", 7) == 7
    assert read(tmp_path, SETTINGS).setting("b", "n", 7) == 3
    environment = {"VNF_B_N": "4"}
    assert read(tmp_path, SETTINGS, environment=environment).setting("b", "n", 7) == 4
    assert read(tmp_path, SETTINGS, environment=environment, sets=["n=5"]).setting("b", "n", 7) == 5


def test_a_setting_has_the_type_of_its_default(tmp_path: Path) -> None:
    file = read(tmp_path, SETTINGS)
    assert (file.setting("b", "r", 0.5), type(file.setting("b", "r", 0.5))) == (2.0, float)
    assert file.setting("b", "f", False) is True
    assert file.setting("b", "l", [""]) == ["x"]
    line = Config.read(environment=NONE, sets=["f=off", "l=a, b", "n=-1", "r=1e-3", "s=x=y"])
    assert line.setting("b", "f", True) is False
    assert line.setting("b", "l", [""]) == ["a", "b"]
    assert (line.setting("b", "n", 0), line.setting("b", "r", 0.0), line.setting("b", "s", "")) == (-1, 1e-3, "x=y")


@pytest.mark.parametrize(
    ("key", "default", "words"),
    [
        ("n", "text", "vnf.toml:3: vnf.b.settings.n: 3: expected a text"),
        ("c", 1, "vnf.toml:2: vnf.b.settings.c: 'tcp://10.0.0.3:5000': expected a whole number"),
        ("f", 1, "vnf.toml:5: vnf.b.settings.f: True: expected a int"),
        ("l", "x", "vnf.toml:6: vnf.b.settings.l: ['x']: expected a text"),
    ],
)
def test_a_setting_of_the_wrong_type_is_refused(tmp_path: Path, key: str, default: object, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, SETTINGS).setting("b", key, default)  # type: ignore[type-var]
    assert str(caught.value).removeprefix(f"{tmp_path}/") == words


def test_a_wrong_type_on_the_command_line_is_refused() -> None:
    config = Config.read(environment={"VNF_B_F": "maybe"}, sets=["n=x"])
    with pytest.raises(ConfigError, match=r"^--set n: 'x': expected a whole number$"):
        config.setting("b", "n", 1)
    with pytest.raises(ConfigError, match=r"^VNF_B_F: 'maybe': expected true or false$"):
        config.setting("b", "f", True)


def test_a_setting_whose_default_is_an_endpoint_must_be_one() -> None:
    config = Config.read(environment=NONE, sets=["c=tpc://h:1"])
    with pytest.raises(ConfigError, match=r"^--set c: 'tpc://h:1' is not an endpoint"):
        config.setting("b", "c", "tcp://h:1")


def test_an_unknown_setting_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    config = Config.read(environment=NONE, sets=["cc=1"])
    with pytest.raises(ConfigError) as caught:
        config.check_known("b", ["c", "n"])
    assert str(caught.value) == "--set cc: b has no such setting: it knows c, n, limits.* (did you mean c?)"
    with pytest.raises(ConfigError, match=r"vnf.toml:3: vnf.b.settings.n: b has no such setting: it knows c"):
        read(tmp_path, SETTINGS).check_known("b", ["c"])


def test_a_set_without_equals_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^--set 'x': expected KEY=VALUE$"):
        Config.read(environment=NONE, sets=["x"])


# --- limits


def test_limits_come_from_every_source(tmp_path: Path) -> None:
    text = "[vnf.b.limits]\nconnect_s = 3\nmax_requests = 7\n"
    config = read(tmp_path, text, environment={"VNF_B_LIMITS_MAX_REQUESTS": "8"}, sets=["limits.ask_s=2.5"])
    limits = config.limits("b", Limits(drain_s=1))
    assert (limits.connect_s, limits.max_requests, limits.ask_s, limits.drain_s, limits.idle_s) == (3, 8, 2.5, 1, 60)
    assert limits.native()["idle_s"] == limits.idle_s
    assert "connect_s" not in limits.native()


def test_a_wrong_limit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"limits.connect_s: 0.0 is out of range"):
        Config.read(environment=NONE, sets=["limits.connect_s=0"]).limits("b", Limits())
    config = read(tmp_path, "[vnf.b.limits]\nconect_s = 3\n")
    with pytest.raises(ConfigError, match=r"vnf.toml:2: vnf.b.limits.conect_s: unknown limit.*did you mean connect_s"):
        config.limits("b", Limits())


# --- transports


def test_the_one_line_form_is_the_port_table(tmp_path: Path) -> None:
    line = parse_transport("memif:/run/b.sock,address=10.0.0.2/24,address=fd00::2/64,role=client,ring_slots=256", {})
    table = read(
        tmp_path,
        "[port.port0]\ntype='memif'\npath='/run/b.sock'\nrole='client'\nring_slots=256\n"
        "address=['10.0.0.2/24','fd00::2/64']\n",
    ).ports["port0"]
    assert (line.name, line.type, dict(line.options)) == (table.name, table.type, dict(table.options))
    assert str(line) == "memif:/run/b.sock"


def test_the_first_keys_of_a_port_need_no_name_in_one_line() -> None:
    port = parse_transport("pcap:in.pcap,out.pcap,pace=recorded", {})
    assert dict(port.options) == {"input": "in.pcap", "output": "out.pcap", "pace": "recorded"}
    assert str(port) == "pcap:in.pcap,out.pcap"
    assert str(parse_transport("pcap:in.pcap,mtu=1500", {})) == "pcap:in.pcap"
    assert dict(parse_transport("pcap:,out.pcap", {}).options) == {"input": "", "output": "out.pcap"}
    assert parse_transport("af_xdp:eth1,queue=0,queue=1", {}).options["queue"] == ["0", "1"]
    assert str(parse_transport("tap:vnf0", {})) == "tap:vnf0"
    assert dict(parse_transport("pcap:output=o.pcap", {}).options) == {"output": "o.pcap"}
    assert parse_transport("memif:/a=b", {}).options["path"] == "/a=b"


def test_the_default_transport_is_the_kernel() -> None:
    assert [port.type for port in Config.read(environment=NONE).transports] == ["kernel"]


def test_a_transport_can_be_a_port_by_name(tmp_path: Path) -> None:
    config = read(tmp_path, "[port.data0]\ntype='memif'\npath='/x'\n", transports=["data0", "kernel"])
    assert [port.name for port in config.transports] == ["data0", "kernel"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mmif:/x", "--transport 'mmif:/x': expected kernel, memif, af_xdp, tap, pcap (did you mean memif?)"),
        ("tap", "--transport 'tap': interface: missing: the name of the network interface"),
        ("af_xdp:eth0,take=sctp:1", "--transport 'af_xdp:eth0,take=sctp:1': take: 'sctp:1': expected addresses, all, "
         "udp:PORT or tcp:PORT"),
        ("pcap:in,out,x", "--transport 'pcap:in,out,x': 'x' is not key=value"),
        ("memif", "--transport 'memif': path: missing: the path of the memif control socket"),
        ("memif:/x,rol=server", "--transport 'memif:/x,rol=server': rol: unknown key: memif knows path, role, id, "
         "secret, ring_slots, buffer_bytes, queues, mtu, mac, address, virtual, gateway, tcp_rto_ms, "
         "tcp_user_timeout_s, tcp_handshake_timeout_s, tcp_keep_alive_s, tcp_time_wait_s, tcp_half_open, "
         "tcp_half_open_per_source, tcp_buffer_bytes (did you mean role?)"),
        ("memif:/x,role=client,role=server", "--transport 'memif:/x,role=client,role=server': role: "
         "['client', 'server']: expected one value"),
        ("memif:/x,tcp_buffer_bytes=5000", "--transport 'memif:/x,tcp_buffer_bytes=5000': tcp_buffer_bytes: '5000': "
         "expected a power of two from 1024 to 1048576"),
        ("memif:/x,server", "--transport 'memif:/x,server': 'server' is not key=value"),
        ("memif:/x,mac=01:00:00:00:00:00", "--transport 'memif:/x,mac=01:00:00:00:00:00': mac: '01:00:00:00:00:00': "
         "a port's address cannot be a group address (its first byte is odd)"),
    ],
)  # fmt: skip
def test_a_wrong_transport_is_refused_in_these_words(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.read(environment=NONE, transports=[text])
    assert str(caught.value) == words


def test_two_transports_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two transports are named 'kernel'"):
        Config.read(environment=NONE, transports=["kernel", "kernel"])


def test_every_config_error_is_a_value_error_of_the_tree() -> None:
    assert issubclass(ConfigError, VNFError)
    assert issubclass(ConfigError, ValueError)


# --- where state is


def test_the_command_line_says_where_state_is_then_the_environment_then_the_file(tmp_path: Path) -> None:
    text = "[state]\nurl = 'redis://file'"
    assert read(tmp_path, "").store == "memory://"
    assert read(tmp_path, text).store == "redis://file"
    assert read(tmp_path, text, environment={"VNF_STORE": "redis://variable"}).store == "redis://variable"
    assert read(tmp_path, text, environment={"VNF_STORE": "redis://variable"}, store="redis://x").store == "redis://x"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"store": "10.0.0.1:6379"}, "--store: '10.0.0.1:6379' is not a store: expected one of memory://"),
        ({"environment": {"VNF_STORE": "mysql://u:secret@h"}}, "VNF_STORE: 'mysql://…@h' is not a store: expected one"),
    ],
)
def test_what_is_no_store_is_refused_without_its_password(
    tmp_path: Path, options: dict[str, object], words: str
) -> None:
    assert refusal(tmp_path, "", **options).startswith(words)
