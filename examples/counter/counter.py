"""One counter, any number of replicas: each line that comes counts one up, and is answered with the sum.

``write_through``: a sum that was sent is in the store, whoever dies. Nothing is counted twice either, however often
replica and store lose sight of each other; where nobody can know, the connection is closed without an answer.
"""

from libvnf import VNF, Delimiter, write_through

vnf = VNF("counter")
counts = vnf.table("counts", key=str, value=int, durability=write_through)


@vnf.server(vnf.setting("listen", "tcp://127.0.0.1:7000"), framing=Delimiter(b"\n"))
async def count(conn, request, packet):
    total = await counts.incr("lines")
    conn.send(b"%d\n" % total)


if __name__ == "__main__":
    vnf.run()
