"""Serves an application until a signal comes."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import uvicorn
from starlette.types import ASGIApp

from wsss_jax import signals
from wsss_jax.errors import InputError

_POLL = 0.1  # seconds between two looks for a signal
_WAITING = 256  # connections
_GRACE = 3  # seconds for requests under way


def bind(host: str, port: int) -> socket.socket:
    """Takes the port, so that nothing is begun where it is taken.

    Args:
      host: address or name to bind to.
      port: 0 = any that is free.

    Raises:
      InputError: it is taken, or this machine has not that address.
    """
    try:
        (family, *_, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(_WAITING)  # who comes before the server is ready waits
        except BaseException:
            listening.close()
            raise
    except OSError as error:
        raise InputError(
            f"{host}:{port}: {error.strerror}: choose another --config.port (0 = any) or "
            "--config.host"
        ) from error
    return listening


def format_address(host: str, port: int) -> str:
    """Formats the address under which a browser finds the server."""
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}"


def serve(app: ASGIApp, listening: socket.socket) -> None:
    """Serves until SIGINT, SIGTERM or SIGHUP comes, which then ends the process."""
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,  # addresses hold tokens
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=_GRACE,
        )
    )
    # In the main thread it would set handlers of its own.
    with signals.defer() as received, ThreadPoolExecutor(1) as thread:
        done = thread.submit(server.run, [listening])
        while not received and not done.done():
            time.sleep(_POLL)
        server.should_exit = True
        done.result()
