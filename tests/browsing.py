"""Chromium without a network, and a server of files on this machine."""

import shutil
import sys
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
ONLY_THIS_MACHINE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"


class Quiet(SimpleHTTPRequestHandler):
    """A server of files that does not print."""

    def log_message(self, format, *args):
        """Say nothing."""


class Patient(ThreadingHTTPServer):
    """A server that minds no tab closed before everything in it has arrived."""

    def handle_error(self, request, client_address):
        """Report what went wrong, unless the tab is gone."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def served(folder: Path, handler: type[Quiet] = Quiet):
    """Serve a folder on this machine; give its address."""
    server = Patient(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def chromium() -> str:
    """Return where Chromium is; fail with what to do where it is not."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.fail("Chromium is needed to look at pages: apt-get install chromium")


@contextmanager
def browsing():
    """Start Chromium without a network; give the browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=chromium(), args=[*FLAGS, ONLY_THIS_MACHINE])
        yield started
        started.close()
