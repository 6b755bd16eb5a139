"""Takes what comes, piece by piece, and says at a connection's end how many bytes it took in how many seconds."""

import time

from libvnf import VNF, Connection, Packet, Request

vnf = VNF("sink")
server = vnf.server(vnf.setting("listen", "tcp://:5000"))


@server.on_accept
def begin(conn: Connection, request: Request) -> None:
    conn.state = [time.perf_counter(), 0]


@server.on_data
def take(conn: Connection, request: Request, packet: Packet) -> None:
    conn.state[1] += len(packet)


@server.on_end
def end(conn: Connection, request: Request) -> None:
    begun, count = conn.state
    print(f"took {count} {time.perf_counter() - begun:.6f}", flush=True)
    conn.close()
