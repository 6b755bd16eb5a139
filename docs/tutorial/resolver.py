from libvnf import VNF, Field

vnf = VNF("resolver")
name = vnf.setting("name", default="b.test")
server = vnf.client(vnf.setting("server", default="udp://10.0.0.53:53"), request_id=Field(0, 2), timeout_s=0.5)


async def ask() -> None:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    query = b"\0\0\1\0\0\1\0\0\0\0\0\0" + labels + b"\0\0\1\0\1"  # the client writes the id
    reply = await server.ask(query)
    if reply.u16(6):  # the number of answers; an address is the last four bytes of ours
        print(f"{name} is at {'.'.join(map(str, reply[-4:]))}", flush=True)
    else:
        print(f"{name}: no such name", flush=True)


vnf.every(1, ask)

if __name__ == "__main__":
    vnf.run()
