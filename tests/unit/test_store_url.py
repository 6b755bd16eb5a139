"""Where a store is: what is accepted, what is refused with which words, and that a password is never shown."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libvnf.errors import ConfigError
from libvnf.state.url import StoreURL


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("memory://", StoreURL("memory")),
        ("redis+embedded://", StoreURL("redis+embedded", directory="vnf-store")),
        ("redis+embedded:///var/lib/vnf?ns=a", StoreURL("redis+embedded", directory="/var/lib/vnf", namespace="a")),
        ("redis+embedded://a%3Fb@c", StoreURL("redis+embedded", directory="a?b@c")),
        ("redis://h", StoreURL("redis", (("h", 6379),))),
        ("redis://h:1/", StoreURL("redis", (("h", 1),))),
        ("redis://[::1]:7000/0", StoreURL("redis", (("::1", 7000),))),
        ("redis://:p%40ss@h", StoreURL("redis", (("h", 6379),), None, "p@ss")),
        ("redis://u:p@ss@h", StoreURL("redis", (("h", 6379),), "u", "p@ss")),
        ("redis-cluster://a:1,b,[::2]:3", StoreURL("redis-cluster", (("a", 1), ("b", 6379), ("::2", 3)))),
        (
            "rediss-cluster://u:p@a,b/?tls_ca=/etc/ca.pem&ns=x.y",
            StoreURL("rediss-cluster", (("a", 6379), ("b", 6379)), "u", "p", "x.y", tls_ca="/etc/ca.pem"),
        ),
    ],
)
def test_the_parts_of_a_store_are_read(text: str, expected: StoreURL) -> None:
    assert StoreURL.parse(text) == expected


def test_kinds_of_stores_are_told_apart() -> None:
    assert not StoreURL.parse("memory://").shared
    assert StoreURL.parse("redis+embedded://").shared
    cluster = StoreURL.parse("rediss-cluster://a")
    assert cluster.cluster and cluster.tls and cluster.shared


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected one of memory://"),
        ("redis:h", "expected one of"),
        ("redi://h", "did you mean redis://"),
        ("memory://x", "has no place"),
        ("memory://?ns=a", "ns="),
        ("redis://", "expected HOST:PORT"),
        ("redis://h:0", "expected HOST:PORT"),
        ("redis://h:65536", "expected HOST:PORT"),
        ("redis://::1", "in brackets"),
        ("redis://a,b", "redis-cluster://"),
        ("redis://h/1", "database 0"),
        ("redis://user@h", "USER:PASSWORD"),
        ("redis://h?tls_ca=x", "use rediss://"),
        ("redis-cluster://h?tls_ca=x", "use rediss-cluster://"),
        ("rediss://h?tls_cert=x", "come together"),
        ("rediss://h?tls_c=x", "did you mean tls_ca"),
        ("redis://h?ns=a{b}", "letters, digits"),
        ("redis://h?ns=", "expected ns="),
    ],
)
def test_what_is_no_store_is_refused_with_what_is_one(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        StoreURL.parse(text)


PASSWORDS = st.text("sEcRt7-._~!$&'()*+;=:@/?#[]% ", max_size=9).map("QZ".__add__)


@given(
    st.sampled_from(["redis", "rediss", "redis-cluster", "rediss-cluster", "memory", "rediss+x", ""]),
    PASSWORDS,
    st.sampled_from(["h", "h:1", "h:x", "a,b", "", "[::1]:1", "::1"]),
    st.sampled_from(["", "/1", "?ns=a", "?ns={", "?tls_ca=x", "?x"]),
    st.sampled_from(["{s}://u:{p}@{h}{r}", "{s}://:{p}@{h}{r}", "{s}://u:{p}{r}"]),
)
def test_a_password_is_never_shown(scheme: str, password: str, host: str, rest: str, form: str) -> None:
    text = form.format(s=scheme, p=password, h=host, r=rest)
    try:
        url = StoreURL.parse(text)
    except ConfigError as error:
        shown = str(error)
    else:
        shown = f"{url} {url!r}"
    assert "QZ" not in shown


@given(st.text(max_size=60) | st.from_regex(r"redis(s)?(-cluster)?://[\w:@,\[\]/?&=%.-]{0,40}", fullmatch=True))
def test_anything_else_is_refused_or_read(text: str) -> None:
    try:
        url = StoreURL.parse(text)
    except ConfigError:
        return
    assert not url.nodes or all(host and 0 < port < 65536 for host, port in url.nodes)
