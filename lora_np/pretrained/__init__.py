"""Other people's weights in our models: their names and layouts."""

from lora_np.pretrained.gpt2 import load_gpt2
from lora_np.pretrained.models import load_model
from lora_np.pretrained.places import FileLayout, file_layout

__all__ = ["FileLayout", "file_layout", "load_gpt2", "load_model"]
