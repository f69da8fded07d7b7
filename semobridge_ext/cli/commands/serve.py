"""`semobridge-ext serve`: a local page and JSON endpoint that search the images of a folder of shards."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import socket
import sys
from pathlib import Path
from typing import Any

from semobridge_ext import _errors
from semobridge_ext.cli import models
from semobridge_ext.cli.arguments import add_max_pixels

_DESCRIPTION = """\
A page on this machine for searching shards by text, by image or by both: filters on the metadata,
near duplicates in groups. Rows are loaded once and searched exactly, as `search` does. The model is the
one that made the shards; behind `map`, queries pass the same mapping.
"""
_EPILOG = """\
Only programs of this machine reach it, unless --host says otherwise; there is no password. It reads the
folder and the images that its metadata names, and writes nothing. Ctrl-C ends it.

endpoints, JSON throughout; an error is {"error": reason}:
  GET  /api/info      rows, columns and their values, whether texts can be asked
  POST /api/search    text, image (base64), weight of the text, k, filters {column: value}, group (cosine)
  GET  /image/ROW     a small picture of one row

needs: pip install 'semobridge-ext[cli,serve]'

examples:
  semobridge-ext serve feats/
  semobridge-ext serve feats-centred/ --port 9000
  semobridge-ext serve rows.parquet --model ViT-B-32 --pretrained openai
  curl -H 'Content-Type: application/json' -d '{"text": "red flag", "k": 5}' 127.0.0.1:8765/api/search
"""


_MOST_CONNECTIONS = 512  # idle ones of browsers too; many systems allow 1024 files, pictures among them


def _port(word: str) -> int:
    if not word.isdecimal() or len(word) > 5 or int(word) > 65535:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 65535, got '{word}'")
    return int(word)


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "serve",
        help="a local page that searches shards by text, image or both",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shards", metavar="SHARDS", type=Path,
                        help="folder of extract or map; .parquet, .lance")  # fmt: skip
    parser.add_argument("--port", type=_port, default=8765, help="0: any free one (default: 8765)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    add_max_pixels(parser, "refused, as queries and as pictures")
    models.add_maker(parser)


def _uvicorn() -> Any:
    try:
        import starlette  # noqa: F401 - asked for by serve_app
        import uvicorn
    except ImportError as error:
        raise ImportError(
            f"serve: starlette and uvicorn must be installed to serve a page, got no {error.name}; "
            "pip install 'semobridge-ext[serve]'"
        ) from error
    return uvicorn


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket, before anything is loaded."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        got = f"{host}:{port} ({error.strerror or error})"
        remedy = "choose another --port, or end what listens there"
        raise ValueError(
            _errors.message("serve", "--host and --port", "be free to listen on", got, remedy)
        ) from error


def _warn_if_open(host: str) -> None:
    try:
        inside = ipaddress.ip_address(host).is_loopback
    except ValueError:
        inside = host == "localhost"
    if not inside:
        told = f"serve: --host {host} lets whoever reaches this port search, and see these images"
        print(told, file=sys.stderr)


def _config(uvicorn: Any, app: Any) -> Any:
    from semobridge_ext.cli.serve_protocol import PatientProtocol

    return uvicorn.Config(
        app, http=PatientProtocol, log_level="warning", access_log=False, server_header=False,
        lifespan="off", ws="none", proxy_headers=False, limit_concurrency=_MOST_CONNECTIONS,
        timeout_graceful_shutdown=5,
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    uvicorn = _uvicorn()
    from semobridge_ext.cli.serve_app import make_app
    from semobridge_ext.cli.serve_session import Session

    with _listen(args.host, args.port) as listener:
        _warn_if_open(args.host)
        session = Session(args.shards, args.device, args.max_pixels, (args.model, args.pretrained))
        port, host = listener.getsockname()[1], f"[{args.host}]" if ":" in args.host else args.host
        rows, size = session.gallery, f"{session.gallery.nbytes / 1e6:.2g} MB"
        print(f"{args.shards}: {len(rows)} rows of {rows.width}, {size} in memory")
        print(f"open http://{host}:{port}   (Ctrl-C ends it)", flush=True)
        config = _config(uvicorn, make_app(session, args.host))
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn has closed what was open, and raises it again
            uvicorn.Server(config).run(sockets=[listener])
    print("serve: ended")
    return 0
