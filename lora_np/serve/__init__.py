"""Many adapters over one base, in one batch; and an HTTP server in front of them."""

from lora_np.serve.engine import Engine
from lora_np.serve.pool import Pool
from lora_np.serve.request import Counts, Request
from lora_np.serve.split import SplitModel

__all__ = ["Counts", "Engine", "Pool", "Request", "SplitModel"]
