"""B with state: b.py, which also counts for each user how often it has asked. How the count is kept is a setting.

``local``: here. ``write_back``: here, and 100 ms later in the store. ``write_through``: in the store, then C is asked.
"""

from libvnf import VNF, Connection, Fixed, Packet, Record, Request, local, write_back, write_through

DURABILITIES = {"local": local, "write_back": write_back(interval_s=0.1), "write_through": write_through}
USERS = 10_000

vnf = VNF("b")
listen = vnf.setting("listen", "tcp://:5000")
c = vnf.setting("c", "tcp://:6000")
message = Fixed(vnf.setting("size", 128))
pool = vnf.setting("pool", 0)
durability = DURABILITIES[vnf.setting("durability", "write_back")]


class User(Record):
    asked: int = 0


class Asked(Request):
    a: Connection


# With few partitions the few changes of one moment reach the store in few pieces.
partitions = 8 if durability == write_through else None
users = vnf.table("users", key=int, value=User, durability=durability, partitions=partitions)


# To be durable before anything is sent costs no coroutine, as waiting for put() would.
@vnf.server(listen, framing=message, commit="before_send" if durability == write_through else None)
async def on_request(a: Connection, request: Asked, packet: Packet) -> None:
    number = packet.u64(0) % USERS
    user = await users.get(number) or User()
    users.put_nowait(number, user.replace(asked=user.asked + 1))
    request.a = a
    peer = a.connect(c, framing=message, pool=pool)
    peer.on_data(on_reply)
    peer.send(packet)


def on_reply(peer: Connection, request: Asked, packet: Packet) -> None:
    request.a.send(packet)
    peer.close()
