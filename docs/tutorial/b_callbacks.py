from libvnf import VNF, Connection, Fixed, Packet, Request

vnf = VNF("b")
listen = vnf.setting("listen", default="tcp://:5000")
c = vnf.setting("c", default="tcp://127.0.0.1:6000")


@vnf.server(listen, framing=Fixed(128))
def on_request(a: Connection, request: Request, packet: Packet) -> None:
    request.a = a
    peer = a.connect(c, framing=Fixed(128))  # carries the request
    peer.on_data(on_reply)
    peer.on_error(on_failure)
    peer.send(packet)  # waits until it is connected


def on_reply(peer: Connection, request: Request, packet: Packet) -> None:
    request.a.send(packet)
    peer.close()


def on_failure(peer: Connection, request: Request, error: Exception) -> None:
    request.a.close()


if __name__ == "__main__":
    vnf.run()
