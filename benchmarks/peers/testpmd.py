"""DPDK's testpmd between two memif ports: what comes by one leaves by the other (``io``), on one cpu, in copy mode.

python benchmarks/peers/testpmd.py ROLE PATH PATH
"""

import itertools
import os
import signal
import subprocess
import sys

role, *paths = sys.argv[1:]
cpu = min(os.sched_getaffinity(0))
devices = [
    f"--vdev=net_memif{number},role={role},id=0,socket={path},socket-abstract=no,rsize=10,bsize=2048"
    for number, path in enumerate(paths)
]
# Main and worker on one cpu; no huge pages, as on our side.
eal = f"--no-huge -m 128 --no-pci --no-telemetry --file-prefix=vnf{os.getpid()} --lcores 0@{cpu},1@{cpu}".split()
options = "-i --auto-start --forward-mode=io --port-topology=paired --total-num-mbufs=8192".split()
child = subprocess.Popen(
    ["stdbuf", "-o0", "dpdk-testpmd", *eal, *devices, "--", *options],
    stdin=subprocess.PIPE,  # at its end it would end
    stdout=subprocess.PIPE,
)
signal.signal(signal.SIGTERM, lambda *_: child.kill())
assert child.stdout is not None
output = b""
for byte in iter(lambda: child.stdout.read(1), b""):
    output += byte
    if output.endswith(b"testpmd> "):
        print("ready", flush=True)
        break
else:
    sys.exit(output.decode(errors="replace"))
for _ in itertools.takewhile(bool, iter(lambda: child.stdout.read(4096), None)):
    pass
