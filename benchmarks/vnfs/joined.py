"""Two ports joined natively: what handlers of frames are compared with."""

from libvnf import VNF

vnf = VNF("joined")
vnf.bridge("port0", "port1")
