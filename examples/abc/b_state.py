"""B with state: b.py, which also counts for each user how often it has asked. How the count is kept is a setting.

``local``: here. ``write_back``: here, and in the store within 100 ms. ``write_through``: in the store before C is asked.
"""

from libvnf import VNF, Connection, Fixed, Packet, Record, Request, local, write_back, write_through

DURABILITIES = {"local": local, "write_back": write_back(interval_s=0.1), "write_through": write_through}
USERS = 10_000

vnf = VNF("b")
listen = vnf.setting("listen", "tcp://:5000")
c = vnf.setting("c", "tcp://:6000")
message = Fixed(vnf.setting("size", 128))
pool = vnf.setting("pool", 0)


class User(Record):
    asked: int = 0


class Asked(Request):
    a: Connection


users = vnf.table("users", key=int, value=User, durability=DURABILITIES[vnf.setting("durability", "write_back")])


@vnf.server(listen, framing=message)
async def on_request(a: Connection, request: Asked, packet: Packet) -> None:
    number = packet.u64(0) % USERS
    user = await users.get(number) or User()
    await users.put(number, user.replace(asked=user.asked + 1))
    request.a = a
    peer = a.connect(c, framing=message, pool=pool)
    peer.on_data(on_reply)
    peer.send(packet)


def on_reply(peer: Connection, request: Asked, packet: Packet) -> None:
    request.a.send(packet)
    peer.close()
