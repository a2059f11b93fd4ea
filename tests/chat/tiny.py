"""A small Llama with the tiny tokenizer, in memory and as a folder; and one that says a script."""

from types import SimpleNamespace

import numpy as np

from lora_np.chat import Conversation, Drawing
from lora_np.models.language import TextMemory
from tests.finetune import tiny
from tests.pretrained.tiny_tokenizer import tiny_tokenizer

V, CONTEXT, END = 340, 160, 2
GREEDY = Drawing(temperature=0, tokens=8)
SYSTEM = "s"  # a message that spares the template its own long one


def llama(seed=0, context=CONTEXT, d_model=16):
    """Return a model of two layers in float64, with a head of its own.

    With a tied head it would repeat the last token.
    """
    sizes = {"n_layer": 2, "d_model": d_model, "tied": False}
    return tiny.llama(seed, np.float64, V, context, **sizes)


def write_llama(folder, seed=0):
    """Write this model, in float16, as a folder of Hugging Face."""
    return tiny.write_model(folder, llama(seed), np.float16)


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
