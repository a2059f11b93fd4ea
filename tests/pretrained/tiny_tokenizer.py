"""A byte-level tokenizer of about 340 tokens with ChatML's markers: as GGUF fields, as a folder."""

import json
from functools import cache

from lora_np.pretrained import Tokenizer, tokenizer_of_gguf
from lora_np.pretrained.tokenizer import byte_characters

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SMOLLM = (  # the template in SmolLM2's file: without a system message it writes its own
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
TEXT = (
    "the user asks how many shops are in the city and the assistant answers with a select from "
    "shops where the city is named. you are a helpful assistant. which shops have the largest "
    "count of orders, and when was the first order made? there are 12 shops and 340 orders in 2024."
)


@cache
def _trained():
    """Return the tokens, in order of their ids, and the merges of a small byte-level BPE."""
    import tokenizers

    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=340, special_tokens=SPECIAL, initial_alphabet=sorted(byte_characters()),
        show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator([TEXT], trainer)
    model = json.loads(backend.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return tokens, [" ".join(m) if isinstance(m, list) else m for m in model["merges"]]


def tiny_fields(**changes):
    """Return the fields of a GGUF file, named without their prefix in `changes`."""
    tokens, merges = _trained()
    fields = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": list(tokens),
        "token_type": [3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)),
        "merges": list(merges),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "add_bos_token": False,
    }
    template = changes.pop("chat_template", SMOLLM)
    fields = {f"tokenizer.ggml.{k}": v for k, v in {**fields, **changes}.items() if v is not None}
    return fields | ({} if template is None else {"tokenizer.chat_template": template})


def tiny_tokenizer(**changes) -> Tokenizer:
    """Return the tokenizer of these fields."""
    return tokenizer_of_gguf(tiny_fields(**changes))


def write_tiny_tokenizer(folder, template=SMOLLM, **config):
    """Write the same tokenizer as a folder of Hugging Face; `config` changes its config."""
    import tokenizers

    tokens, merges = _trained()
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab={t: i for i, t in enumerate(tokens)}, merges=[tuple(m.split(" ")) for m in merges]
        )
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = tokenizers.decoders.ByteLevel()
    added = [tokenizers.AddedToken(t, normalized=False, special=True) for t in SPECIAL]
    backend.add_special_tokens(added)
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    fields = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[1],
        "eos_token": SPECIAL[2],
        "chat_template": template,
    }
    fields = {k: v for k, v in {**fields, **config}.items() if v is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields), encoding="utf-8")
    return folder
