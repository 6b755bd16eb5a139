from libvnf import VNF, Connection, Delimiter, Packet, Request

vnf = VNF("echo")
listen = vnf.setting("listen", default="tcp://:7000")


@vnf.server(listen, framing=Delimiter(b"\n"))
def on_line(conn: Connection, request: Request, line: Packet) -> None:
    conn.send(line, b"\n")


if __name__ == "__main__":
    vnf.run()
