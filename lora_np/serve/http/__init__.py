"""The engine over HTTP: see server.py, which names the parts from the client to the engine."""

from lora_np.serve.http.server import need_packages, serve_http
from lora_np.serve.http.service import Limits

__all__ = ["Limits", "need_packages", "serve_http"]
