"""B in the functions of the libVNF papers, by their names: what b.py does. The configuration maps the addresses."""

from libvnf.api import *


def handle_c_reply(connID, request, packet):
    sendData(request.serverID, request.data, len(packet))
    closeConn(connID)


def handle_a_request(connID, request, packet):
    c = createClient("data0", "10.0.0.3", 5000, TCP)
    registerCallback(c, "read", handle_c_reply)
    addReqCtxt(c, request)
    request.serverID = connID
    request.data = getRefPtr(packet)
    sendData(c, request.data, len(packet))


serverID = createServer("data0", "10.0.0.2", 5000, TCP)
registerCallback(serverID, "read", handle_a_request)
startEventLoop()
