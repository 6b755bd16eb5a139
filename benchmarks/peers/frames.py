"""The frame generator in a process of its own: options as JSON in, a frame as hexadecimal; the report as JSON out.

python benchmarks/peers/frames.py OPTIONS
"""

import json
import sys

from libvnf._native import generate_frames

options = json.loads(sys.argv[1])
if "frame" in options:
    options["frame"] = bytes.fromhex(options["frame"])
print(json.dumps(generate_frames(options, lambda now: False)))
