"""Serve a run's recommendations over HTTP.

    python serve.py --run runs/quickstart [--port 8000] [--attributes prices.csv]
    curl -s localhost:8000/recommend -d '{"histories": [["E0001", "E0002"]], "k": 5}'

Paths: POST /recommend, GET /catalogue, POST /catalogue/reload and /catalogue/rollback, GET /health,
/ready, /metrics, and /docs, which describes them all. The server listens on this machine only,
unless --host says otherwise, and ends after the requests that it has taken when it is told to stop.
docs/SERVING.md has the rest.
"""

from __future__ import annotations

if __name__ == "__main__":
    from minionerec.errors import while_importing

    while_importing()

import sys
from pathlib import Path

import torch
import uvicorn

from minionerec.errors import UserError, one_line_errors, show
from minionerec.experiment.allocator import keep_freed_memory
from minionerec.experiment.config import split_flags
from minionerec.experiment.run import say
from minionerec.serving.app import make_app
from minionerec.serving.served import Versions
from minionerec.serving.settings import ServerSettings, describe_flags, read_flags

LOCAL = ("127.0.0.1", "localhost", "::1")
KEEP_S = 75  # of a connection without requests: longer than proxies keep theirs
STOP_S = 30  # for the requests that are being answered when the server is told to stop


def main() -> None:
    """Read the flags, load the run, listen until told to stop."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(f"{(__doc__ or '').strip()}\n\n{describe_flags()}")
        return
    settings = read_flags(split_flags(sys.argv[1:]))
    api_key = read_key(settings)
    if api_key is None and settings.host not in LOCAL:
        show(f"note: anybody who reaches {settings.host} may ask and reload; see --api_key_file")
    keep_freed_memory()
    torch.set_num_threads(settings.threads)
    versions = Versions(settings.run, settings.checkpoint, settings.attributes, settings.fusion)
    served = versions.current
    say(f"{len(served.item_ids):,} items of {settings.run}, version {served.digest[:12]}")
    config = uvicorn.Config(
        make_app(versions, settings, api_key),
        host=settings.host,
        port=settings.port,
        access_log=False,
        log_level="warning",
        timeout_keep_alive=KEEP_S,
        timeout_graceful_shutdown=STOP_S,
    )
    server = uvicorn.Server(config)
    listening = config.bind_socket()
    host, port = listening.getsockname()[:2]
    say(f"http://{host}:{port}, described at /docs")
    server.run(sockets=[listening])


def read_key(settings: ServerSettings) -> str | None:
    """The key of ``--api_key_file``; None where none is asked for.

    Raises:
        UserError: the file is missing, or has no key.
    """
    if settings.api_key_file is None:
        return None
    file = Path(settings.api_key_file)
    try:
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise UserError(f"--api_key_file: {file}: cannot be read ({error})") from None
    if not key:
        raise UserError(f"--api_key_file: {file}: is empty, expected a key")
    return key


if __name__ == "__main__":
    with one_line_errors():
        main()
