from libvnf import VNF, Connection, Packet, Request

vnf = VNF("dns")
listen = vnf.setting("listen", default="udp://:5353")
zone = dict(entry.split("=") for entry in vnf.setting("zone", default=["b.test=10.0.0.2", "c.test=10.0.0.3"]))


def read_name(query: Packet) -> tuple[str, int]:
    """The name asked for (RFC 1035 §4.1.2), and the offset behind it."""
    labels, at = [], 12
    while length := query.u8(at):
        labels.append(bytes(query[at + 1 : at + 1 + length]).decode("latin-1").lower())
        at += 1 + length
    return ".".join(labels), at + 1


@vnf.server(listen)
def on_query(conn: Connection, request: Request, query: Packet) -> None:
    name, end = read_name(query)
    type_and_class = query.u32(end)
    known, answer = name in zone, b""
    if known and type_and_class == 0x0001_0001:  # A, IN: a pointer to the question, an hour, four bytes
        answer = b"\xc0\x0c\0\1\0\1\0\0\x0e\x10\0\4" + bytes(map(int, zone[name].split(".")))
    flags = b"\x84\0" if known else b"\x84\3"  # an authoritative answer, or: no such name
    counts = b"\0\1\0\1\0\0\0\0" if answer else b"\0\1\0\0\0\0\0\0"
    conn.send(query[:2], flags, counts, query[12 : end + 4], answer)


if __name__ == "__main__":
    vnf.run()
