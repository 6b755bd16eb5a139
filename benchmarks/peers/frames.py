"""The frame generator in a process of its own: options as JSON in, a frame as hexadecimal; the report as JSON out, with
the seconds for which others had its cpu.

python benchmarks/peers/frames.py OPTIONS
"""

import json
import sys
from pathlib import Path

from libvnf._native import generate_frames

options = json.loads(sys.argv[1])
if "frame" in options:
    options["frame"] = bytes.fromhex(options["frame"])


def waited_s() -> float:
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9


before = waited_s()
report = generate_frames(options, lambda now: False)
print(json.dumps({**report, "waited_s": waited_s() - before}))
