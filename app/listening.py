"""The address that API processes answer on: its sockets, one for each of them, and whose it must not be."""

import asyncio
import errno
import os
import socket
import sys
from time import monotonic

BACKLOG = 2048
WAIT_S = 5.0


class ServeError(Exception):
    """It can't be served; the message is one line for people. The tree is in supervisor.py."""


class CannotListen(ServeError):
    """The address can't be listened on."""


async def listen(host: str, port: int, *, wait_s: float = WAIT_S) -> socket.socket:
    """A socket that listens there, waiting at most `wait_s` for whoever has the port. Raises CannotListen."""
    (listening,) = await listen_together(host, port, 1, wait_s=wait_s)
    return listening


async def listen_together(host: str, port: int, processes: int, *, wait_s: float = WAIT_S) -> list[socket.socket]:
    """A socket for each of so many processes, all at one address, as `listen`; docs/decisions/api-processes.md."""
    until = monotonic() + wait_s
    family, address = await _found(host, port)
    both = host == "::" and socket.has_dualstack_ipv6()
    while True:
        try:
            return _sockets(family, address, processes, both=both)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            if error.errno != errno.EADDRINUSE:
                raise CannotListen(f"can't listen on {host}, port {port}: {reason}") from error
            if monotonic() >= until:
                raise CannotListen(f"port {port} of {host} is in use; choose another with --port") from error
        await asyncio.sleep(0.05)


async def _found(host: str, port: int) -> tuple[int, tuple[str, int]]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise CannotListen(f"{host} is no address of this machine: {error}") from error
    family, _, _, _, address = found[0]
    return family, (str(address[0]), int(address[1]))


def _sockets(family: int, address: tuple[str, int], processes: int, *, both: bool) -> list[socket.socket]:
    """Raises OSError."""
    # Alone, and first: among sockets that share a port the kernel would let in another deployment of this user, too.
    alone = _socket(family, address, both=both, shared=False)
    if processes == 1:
        return [alone]
    if sys.platform != "linux":
        # Elsewhere connections are not spread over the sockets of a port: the last one gets them all.
        return [alone, *(alone.dup() for _ in range(processes - 1))]
    address = (address[0], alone.getsockname()[1])
    alone.close()
    made: list[socket.socket] = []
    try:
        while len(made) < processes:
            made.append(_socket(family, address, both=both, shared=True))
    except OSError:
        for one in made:
            one.close()
        raise
    return made


def _socket(family: int, address: tuple[str, int], *, both: bool, shared: bool) -> socket.socket:
    listening = socket.create_server(address, family=family, backlog=BACKLOG, dualstack_ipv6=both, reuse_port=shared)
    # What is accepted inherits it; asyncio sets it only on sockets that it made itself. Without it a small answer
    # waits for the client's delayed acknowledgement.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening
