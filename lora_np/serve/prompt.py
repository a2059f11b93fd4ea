"""What a call asks of the engine: a prompt, how many tokens may follow, and how to draw them."""

from __future__ import annotations

from typing import Any

from lora_np.pretrained import Tokenizer
from lora_np.reading import shown
from lora_np.serve.api import Call
from lora_np.serve.errors import Refusal
from lora_np.tables import counted

LONGEST = 512  # tokens of the longest answer to a chat that gives no max_tokens


def prompt_of(call: Call, tokenizer: Tokenizer) -> list[int]:
    """Return the tokens of a call's prompt, or of its messages in the model's chat template.

    Raises
    ------
    Refusal
        If there are none, or one does not exist.
    TokenizerError
        If there is no chat template, or it refuses the messages.
    """
    if call.messages is not None:
        return tokenizer.chat(call.messages, answer_follows=True)
    if isinstance(call.prompt, str):
        start = [tokenizer.bos] if tokenizer.add_bos and tokenizer.bos is not None else []
        tokens = start + tokenizer.encode(call.prompt)
    else:
        tokens = list(call.prompt or ())
    if not tokens:
        raise Refusal("the prompt is empty: send at least one token", param="prompt")
    for token in tokens:
        if not 0 <= token < tokenizer.vocab_size:
            raise Refusal(
                f"prompt: there is no token {shown(token)}: they are numbered from 0 to "
                f"{tokenizer.vocab_size - 1}",
                param="prompt",
            )
    return tokens


def most_new(call: Call, prompt: list[int], context: int, longest: int) -> int:
    """Return how many tokens may follow a prompt.

    These are the call's max_tokens or, if it gives none, `longest`, unless the rest of the context
    is shorter.

    Raises
    ------
    Refusal
        If the prompt and its answer would be longer than the context.
    """
    left = context - len(prompt)
    most = call.max_tokens or max(1, min(longest, left))
    if most > left:
        raise Refusal(
            f"the prompt has {counted(len(prompt), 'token')} and the answer may have {most}, but "
            f"there is room for {context}: send a shorter prompt or a smaller max_tokens",
            param="prompt" if call.messages is None else "messages",
            code="context_length_exceeded",
        )
    return most


def options_of(call: Call, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return a call's options for :meth:`lora_np.serve.engine.Engine.submit`."""
    return {
        "stop": tokenizer.ends,
        "temperature": call.temperature,
        "top_p": None if call.top_p == 1 else call.top_p,
        "seed": call.seed,
    }
