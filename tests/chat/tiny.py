"""A small Llama with the tiny tokenizer, in memory and as a folder; and one that says a script."""

import json
from types import SimpleNamespace

import numpy as np

from lora_np import Llama, LlamaConfig
from lora_np.chat import Conversation, Drawing
from lora_np.files import save_tensors
from lora_np.models.language import TextMemory
from lora_np.pretrained.llama import OURS
from tests.pretrained.tiny_tokenizer import tiny_tokenizer, write_tiny_tokenizer

V, CONTEXT, END = 340, 160, 2
GREEDY = Drawing(temperature=0, tokens=8)
SYSTEM = "s"  # a message that spares the template its own long one


def llama(seed=0, context=CONTEXT, d_model=16):
    """Return a model with weights so large that every part matters, and with a head of its own.

    With a tied head it would repeat the last token.
    """
    rng = np.random.default_rng(seed)
    sizes = {"n_layer": 2, "n_head": 2, "n_kv_head": 1, "d_model": d_model, "d_hidden": 24}
    model = Llama(LlamaConfig(V, context, **sizes, tied=False), rng, np.float64)
    for p in model.parameters().values():
        p.value[...] = p.value + 0.2 * rng.standard_normal(p.shape)
    return model


def write_llama(folder, seed=0):
    """Write this model, in float16, as a folder of Hugging Face."""
    model = llama(seed)
    write_tiny_tokenizer(folder)
    arrays = {}
    for name, p in model.parameters().items():
        path, _, kind = name.rpartition(".")
        arrays[f"{path}.{OURS[kind]}"] = p.value.astype(np.float16)
    save_tensors(folder / "model.safetensors", arrays, {"format": "pt"})
    c = model.config
    fields = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": V,
        "max_position_embeddings": CONTEXT,
        "num_hidden_layers": c.n_layer,
        "num_attention_heads": c.n_head,
        "num_key_value_heads": c.n_kv_head,
        "hidden_size": c.d_model,
        "intermediate_size": c.d_hidden,
        "rms_norm_eps": c.eps,
        "rope_theta": c.rope_base,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


class Scripted:
    """A model whose next tokens are given: the script of each answer, END after it.

    An exception in a script is raised.
    """

    def __init__(self, *answers, context=CONTEXT):
        self.start, self.block_size = SimpleNamespace(length=0), context
        self.script = [token for answer in answers for token in [*answer, END]]
        self.read = []  # the new tokens of every call

    def advance(self, tokens, memory):
        """Return logits whose largest is the next of the script's."""
        self.read.append(tokens[0].tolist())
        token = self.script.pop(0)
        if isinstance(token, BaseException):
            raise token
        known = 0 if memory is None else memory.lengths[0]
        logits = np.zeros((1, V))
        logits[0, token] = 1
        return logits, TextMemory((known + tokens.shape[1],), None)


def conversation(model, **options):
    """Return a greedy conversation with the tiny tokenizer, and the lines that it says."""
    heard = []
    options = {"system": SYSTEM, "drawing": GREEDY, "listen": heard.append} | options
    return Conversation(model, options.pop("tokenizer", tiny_tokenizer()), **options), heard
