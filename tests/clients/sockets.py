"""Looks at the sockets of another process, by copies of its file descriptors (pidfd_getfd, Linux 5.6)."""

import ctypes
import dataclasses
import errno
import os
import pathlib
import socket

PIDFD_GETFD = 438  # the same number on every architecture
ESTABLISHED = 1  # the first byte of struct tcp_info

_libc = ctypes.CDLL(None, use_errno=True)


@dataclasses.dataclass(frozen=True)
class Connection:
    """A connected TCP socket."""

    local: str
    peer: str
    peer_port: int
    nodelay: bool

    def __str__(self):
        return f"{self.local} to {self.peer}"


def connected(pid):
    """The connected TCP sockets of a process.

    The caller must be allowed to trace the process: be root, or an ancestor of it.
    """
    found = []
    process = os.pidfd_open(pid)
    try:
        for entry in pathlib.Path(f"/proc/{pid}/fd").iterdir():
            if not _is_socket(entry):
                continue
            copy = _libc.syscall(PIDFD_GETFD, process, int(entry.name), 0)
            if copy < 0:
                error = ctypes.get_errno()
                if error == errno.EBADF:  # closed meanwhile
                    continue
                raise OSError(error, f"cannot copy descriptor {entry.name} of process {pid}: {os.strerror(error)}")
            with socket.socket(fileno=copy) as copied:
                found.append(_connection(copied))
    finally:
        os.close(process)
    return [connection for connection in found if connection]


def _is_socket(entry):
    try:
        return os.readlink(entry).startswith("socket:")
    except FileNotFoundError:
        return False


def _connection(copied):
    """None if it is not a connected TCP socket."""
    if copied.family not in (socket.AF_INET, socket.AF_INET6) or copied.type != socket.SOCK_STREAM:
        return None
    if copied.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[0] != ESTABLISHED:
        return None
    nodelay = copied.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
    try:
        local, peer = copied.getsockname(), copied.getpeername()
    except OSError:  # disconnected meanwhile
        return None
    return Connection(f"{local[0]}:{local[1]}", f"{peer[0]}:{peer[1]}", peer[1], nodelay)
