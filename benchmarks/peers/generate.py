"""One run of the frame generator: options as JSON, the report as JSON. A process of its own, so that it has its own cpu."""

import json
import sys

from libvnf._native import generate_frames

print(json.dumps(generate_frames(json.loads(sys.argv[1]), lambda progress: False)))
