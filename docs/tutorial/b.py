from libvnf import VNF, Connection, Fixed, Packet, Request

vnf = VNF("b")
listen = vnf.setting("listen", default="tcp://:5000")
c = vnf.setting("c", default="tcp://127.0.0.1:6000")


@vnf.server(listen, framing=Fixed(128))
async def on_request(a: Connection, request: Request, packet: Packet) -> None:
    async with a.connect(c, framing=Fixed(128)) as peer:
        reply = await peer.ask(packet)
    a.send(reply)


if __name__ == "__main__":
    vnf.run()
