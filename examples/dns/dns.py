"""A DNS server for the A records of one table (RFC 1035).

vnf run examples/dns/dns.py
dig @127.0.0.1 -p 5300 www.example.com
"""

import ipaddress

from libvnf import VNF

vnf = VNF("dns")
RECORDS = {"www.example.com": ["192.0.2.10", "192.0.2.11"], "mail.example.com": ["192.0.2.25"]}
HEADER, A, IN, TTL_S = 12, 1, 1, 300
NO_ERROR, FORMAT_ERROR, NO_SUCH_NAME, NOT_IMPLEMENTED = 0, 1, 3, 4


@vnf.server(vnf.setting("url", default="udp://:5300"))
def on_query(client, request, query):
    if len(query) < HEADER or query.u16(2) & 0x8000:
        return  # not a query: answering could begin an endless exchange
    try:
        labels, at = [], HEADER
        while size := query.u8(at):
            labels.append(bytes(query[at + 1 : at + 1 + size]).decode("ascii"))
            at += 1 + size
        kind, end = (query.u16(at + 1), query.u16(at + 3)), at + 5
        addresses = RECORDS.get(".".join(labels).lower())
        code = NO_SUCH_NAME if addresses is None else NO_ERROR
    except (IndexError, UnicodeDecodeError):
        kind, end, addresses, code = (0, 0), HEADER, None, FORMAT_ERROR
    if query.u16(2) & 0x7800:
        kind, end, code = (0, 0), HEADER, NOT_IMPLEMENTED
    found = [ipaddress.IPv4Address(text).packed for text in addresses or () if kind == (A, IN)]
    # The flags: a response, authoritative, "recursion desired" as it was asked.
    head = [query.u16(0), 0x8400 | query.u16(2) & 0x0100 | code, int(end > HEADER), len(found), 0, 0]
    # Each answer's name is a pointer to the question's (RFC 1035 §4.1.4).
    answers = [b"\xc0\x0c\x00\x01\x00\x01" + TTL_S.to_bytes(4, "big") + b"\x00\x04" + address for address in found]
    client.send(b"".join(word.to_bytes(2, "big") for word in head), query[HEADER:end], *answers)
