"""Serve the web page: segment, inspect and compare in the browser.

sfp page
sfp page --model ViT-B/16 --pretrained weights/ViT-B-16.pt
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import re
import signal
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sfp.errors import SFPError, run_command
from sfp.options import HelpFormatter, add_weights_arguments, weights_arguments


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="sfp page",
        description="Start the web page.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 lets others on the network in",
    )
    parser.add_argument("--port", type=int, default=7860, help="0 for any free one")
    parser.add_argument(
        "--embed-in",
        default="",
        metavar="SITE",
        help="another site that may show the page in a frame, such as https://example.org",
    )
    parser.add_argument("--model", help="a further backbone, chosen at first: a name of load_clip")
    parser.add_argument(
        "--pretrained", default="openai", help="its open_clip tag, or the path of a checkpoint"
    )
    add_weights_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return run_command(serve, parser.parse_args(arguments))


def serve(args: argparse.Namespace) -> None:
    """Serve the page until it is interrupted.

    Raises:
        SFPError: Gradio is not installed, the address can't be listened on, the site for frames is
            none, or the model that was named can't be had.
    """
    if importlib.util.find_spec("gradio") is None:
        raise SFPError(
            "The page needs Gradio, which is not installed; "
            "pip install 'sfp-ovss[page]', or in the repository pip install -c constraints.txt -e "
            "'.[page]'."
        )
    given = any(value is not None for value in weights_arguments(args).values())
    if not args.model and (args.pretrained != "openai" or given):
        raise SFPError("Weights are named without a model; give their --model, such as ViT-B/16.")
    if args.embed_in and not re.fullmatch(r"https?://[\w.*:-]+", args.embed_in):
        raise SFPError(
            f"--embed-in is {args.embed_in!r}; give a site without a path, such as"
            " https://example.org."
        )
    with (
        tempfile.TemporaryDirectory(prefix="sfp-page-") as folder,
        listen(args.host, args.port) as listening,
    ):
        os.environ.update(  # read when Gradio and Pillow are imported
            GRADIO_ANALYTICS_ENABLED="False",
            GRADIO_TEMP_DIR=f"{folder}/gradio",
            HF_HUB_DISABLE_TELEMETRY="1",
            PILLOW_BLOCK_SIZE="64m",  # large pictures' memory then goes back to the system
        )
        from sfp.page.backend import BACKBONES, Backbone, Backend
        from sfp.page.server import page_server

        backbones = list(BACKBONES)
        if args.model:
            title = f"{args.model}, {Path(args.pretrained).name}"
            own = Backbone(title, args.model, args.pretrained, weights_arguments(args))
            backbones.insert(0, own)
        backend = Backend(Path(folder), backbones)
        if args.model:
            backend.load(title)
        server = page_server(backend, args.host, embed_in=args.embed_in)
        host, port = listening.getsockname()[:2]
        address = f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
        print(f"The page is at {address} (Ctrl-C ends it)", flush=True)
        # so that the folder is removed then too
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt):
            server.run([listening])


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        SFPError: no such address on this machine, or the port is taken.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise SFPError(
            f"The page can't listen on {host} port {port} ({error}); "
            "choose another --port, or another --host."
        ) from error
