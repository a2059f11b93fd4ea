"""Models: what all language models share, and one file per architecture."""

from lora_np.models.gpt2 import GPT, GPTConfig
from lora_np.models.language import LanguageModel
from lora_np.models.llama import Llama, LlamaConfig
from lora_np.models.sampling import sample_token

__all__ = ["GPT", "GPTConfig", "LanguageModel", "Llama", "LlamaConfig", "sample_token"]
