"""The process between an embedded store's server and the processes that use it. Run as a file; knows no libvnf.

    python -I -S keeper.py DIR PROGRAM OPTION…

Each client holds a shared lock on ``DIR/store.clients``, which the kernel takes back however the client ends. The
keeper asks for the exclusive one: getting it means that the last client has left, and that no other comes before the
server has ended. The server inherits the lock on ``DIR/store.server``: one server per directory, also when its keeper
was killed; it then ends by its parent's death. What goes wrong is one line on standard output.
"""

import contextlib
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
from types import FrameType

CLIENTS, SERVER, LOG = "store.clients", "store.server", "store.log"
OCCUPIED = "occupied"
"""Printed when another keeper's server runs, or is just starting or ending."""
GRACE_S = 30.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(directory: str, *command: str) -> None:
    libc = ctypes.CDLL(None)  # loaded before the fork, used after it
    if os.fork():
        os._exit(0)  # nobody's child: whoever asked for the store may end before it, or long after
    server = os.open(os.path.join(directory, SERVER), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(server, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        tell(OCCUPIED)
        return
    os.set_inheritable(server, True)
    log = os.open(os.path.join(directory, LOG), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    begun = os.fstat(log).st_size
    child = subprocess.Popen(
        command,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=[server],
        preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM),
    )

    def ended(_number: int, _frame: FrameType | None) -> None:
        if child.poll() is not None:
            with open(os.path.join(directory, LOG), errors="replace") as text:
                text.seek(begun)
                tell(f"ended with {child.returncode}: {reason(text.read(1 << 20))}")
            sys.exit(1)

    signal.signal(signal.SIGCHLD, ended)
    ended(0, None)  # before there was the handler
    clients = os.open(os.path.join(directory, CLIENTS), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(clients, fcntl.LOCK_EX)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child.terminate()  # Redis writes and syncs its file, and ends
    try:
        child.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def tell(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody may listen any more
        os.write(1, line.encode() + b"\n")


def reason(log: str) -> str:
    """The last line of a server's log that says what is wrong (``#`` is Redis's mark of a warning), else the last."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    told = [line.partition(" # ")[2] for line in lines if " # " in line]
    return (told or lines or ["it printed nothing"])[-1]


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except OSError as error:
        tell(str(error))
        sys.exit(1)
