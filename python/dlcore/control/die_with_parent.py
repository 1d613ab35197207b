"""Becomes the program it is given, which the kernel then kills when its parent dies.

    python -I -S die_with_parent.py PARENT_PID PROGRAM [ARGUMENT...]

A program of its own, not a function between fork and exec: the parent may have threads (gRPC has),
and code that runs in the fork of such a process can hang.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    # Not SIGTERM: a frozen process would not hear it.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the parent died first")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
