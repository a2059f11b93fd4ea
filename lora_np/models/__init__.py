"""Models: what a language model shares, and one architecture a file."""

from lora_np.models.gpt2 import GPT, GPTConfig
from lora_np.models.language import LanguageModel, sample_token

__all__ = ["GPT", "GPTConfig", "LanguageModel", "sample_token"]
