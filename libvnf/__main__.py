"""``python -m libvnf`` is ``vnf``."""

from .cli import main

main(prog_name="vnf")
