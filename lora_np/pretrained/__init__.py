"""Other people's weights in our models: their names and layouts; their tokenizers."""

from lora_np.pretrained.find import Llm, find_model, fingerprint, load_llm
from lora_np.pretrained.gpt2 import load_gpt2
from lora_np.pretrained.llama import load_llama
from lora_np.pretrained.models import load_model
from lora_np.pretrained.places import FileLayout, file_layout
from lora_np.pretrained.template import ChatTemplate, template_in
from lora_np.pretrained.template_values import TemplateError
from lora_np.pretrained.tokenizer import TextStream, Tokenizer, TokenizerError
from lora_np.pretrained.tokenizer_files import tokenizer_in, tokenizer_of_gguf

__all__ = [
    "ChatTemplate",
    "FileLayout",
    "Llm",
    "TemplateError",
    "TextStream",
    "Tokenizer",
    "TokenizerError",
    "file_layout",
    "find_model",
    "fingerprint",
    "load_gpt2",
    "load_llama",
    "load_llm",
    "load_model",
    "template_in",
    "tokenizer_in",
    "tokenizer_of_gguf",
]
