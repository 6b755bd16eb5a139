"""One run of the frame generator, in a process of its own: options as JSON in, the report as JSON out."""

import json
import sys

from libvnf._native import generate_frames

print(json.dumps(generate_frames(json.loads(sys.argv[1]), lambda progress: False)))
