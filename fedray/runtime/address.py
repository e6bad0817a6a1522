"""Whether anybody listens at a Ray address: asked before Ray is, which would try for minutes."""

import socket

TIMEOUT_S = 5.0


def reachable(address: str) -> bool:
    """True for `auto`, `local` and whatever has no port; else whether `host:port` (or `ray://host:port`) accepts."""
    host, colon, port = address.rpartition("//")[2].rpartition(":")
    if not colon or not port.isdigit():
        return True
    try:
        socket.create_connection((host.strip("[]"), int(port)), TIMEOUT_S).close()
    except OSError:
        return False
    return True
