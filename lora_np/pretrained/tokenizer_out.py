"""Write a byte-level tokenizer: the fields of a GGUF file, and Hugging Face's files.

The way back from :mod:`lora_np.pretrained.tokenizer_files`. A tokenizer.json holds the regular
expressions that cut a text; a GGUF file holds only their name. A tokenizer whose expressions are
not those of a known name is refused: llama.cpp would cut texts elsewhere, and nothing would show.

Source: convert_hf_to_gguf.py and gguf-py/gguf/vocab.py of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_np.files import load_json, save_json
from lora_np.pretrained.tokenizer import Tokenizer, TokenizerError, tokenizers_package
from lora_np.pretrained.tokenizer_files import (
    COMPOSED,
    CONTROL,
    FIELD,
    GPT2,
    PIECES,
    USER_DEFINED,
    WHOLE_WORDS,
    backend_of_gguf,
    config_in,
    content_of,
    token_of,
    tokenizer_in,
    tokenizer_of_gguf,
)
from lora_np.reading import shown

NORMAL, UNUSED = 1, 5  # kinds of tokens in tokenizer.ggml.token_type
FURTHER = {"unk": "unknown", "pad": "padding"}  # Hugging Face's names of tokens, and GGUF's


# ------------------------------------------------------------------------------- to GGUF


def tokenizer_fields(folder: Path, vocab_size: int) -> dict[str, Any]:
    """Return the fields of a GGUF file for the tokenizer of a folder of Hugging Face.

    Parameters
    ----------
    folder : pathlib.Path
    vocab_size : int
        The model's rows; ids without a token get one that is never used.

    Raises
    ------
    TokenizerError
        If the folder has no tokenizer.json, or llama.cpp has no name for its kind.
    """
    tokenizer, config = tokenizer_in(folder), config_in(folder)
    path = folder / "tokenizer.json"
    content = load_json(path)
    model, added = content["model"], content.get("added_tokens") or []
    pre = _name_of_pieces(content, path)
    ids = {**model["vocab"], **{token["content"]: token["id"] for token in added}}
    tokens, kinds = _table(ids, added, vocab_size, path)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    fields = {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": kinds, "merges": merges}
    found = {"bos": tokenizer.bos, "eos": tokenizer.eos}
    found |= {
        theirs: ids.get(content_of(config.get(f"{n}_token"))) for n, theirs in FURTHER.items()
    }
    fields |= {f"{name}_token_id": i for name, i in found.items() if i is not None}
    fields = {f"{FIELD}{name}": x for name, x in fields.items()}
    fields[f"{FIELD}add_bos_token"] = tokenizer.add_bos
    if tokenizer.template is not None:
        fields["tokenizer.chat_template"] = tokenizer.template.source
    return fields


def _table(
    ids: Mapping[str, int], added: list[dict[str, Any]], vocab_size: int, path: Path
) -> tuple[list[str], list[int]]:
    """Return the token of each id, and its kind."""
    if max(ids.values()) >= vocab_size:
        raise TokenizerError(f"{path} has the id {max(ids.values())}, the model {vocab_size} rows")
    tokens, kinds = [f"[PAD{i}]" for i in range(vocab_size)], [UNUSED] * vocab_size
    for token, i in ids.items():
        tokens[i], kinds[i] = token, NORMAL
    for token in added:
        kinds[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    return tokens, kinds


def _name_of_pieces(content: Mapping[str, Any], path: Path) -> str:
    """Return llama.cpp's name of the way in which a tokenizer.json cuts a text."""
    model, normalizer = content["model"], content.get("normalizer") or {"type": None}
    cuts = content.get("pre_tokenizer") or {}
    cuts = cuts["pretokenizers"] if cuts.get("type") == "Sequence" else [cuts]
    if model.get("type") != "BPE" or cuts[-1].get("type") != "ByteLevel":
        raise TokenizerError(f"{path} is not byte-level BPE, the only kind that is written as GGUF")
    pieces = tuple(piece for cut in cuts for piece in _pieces(cut, path))
    by_pieces = {known: name for name, known in reversed(PIECES.items())}  # the first of equals
    name = by_pieces.get(pieces)
    if name is None:
        raise TokenizerError(f"{path} cuts texts by {shown(pieces)}: llama.cpp's name is not known")
    expected = {
        "normalizer": (normalizer["type"], "NFC" if name in COMPOSED else None),
        "ignore_merges": (bool(model.get("ignore_merges")), name in WHOLE_WORDS),
        "byte_fallback": (bool(model.get("byte_fallback")), False),
        "continuing_subword_prefix": (model.get("continuing_subword_prefix") or "", ""),
        "end_of_word_suffix": (model.get("end_of_word_suffix") or "", ""),
    }
    for field, (found, wanted) in expected.items():
        if found != wanted:
            raise TokenizerError(
                f"{path} has {field} = {shown(found)}, but {name!r} of llama.cpp {shown(wanted)}"
            )
    return name


def _pieces(cut: Mapping[str, Any], path: Path) -> list[str]:
    """Return the regular expressions of one pre-tokenizer of a tokenizer.json."""
    kind, pattern = cut.get("type"), (cut.get("pattern") or {}).get("Regex")
    if kind == "ByteLevel" and not cut.get("add_prefix_space"):
        return [GPT2] if cut.get("use_regex", True) else []
    if kind == "Digits" and cut.get("individual_digits"):
        return [r"\p{N}"]
    if kind == "Split" and pattern and cut.get("behavior") == "Isolated" and not cut.get("invert"):
        return [pattern]
    raise TokenizerError(f"{path} has the pre-tokenizer {shown(dict(cut))}, unknown to llama.cpp")


# ---------------------------------------------------------------------- to Hugging Face's


def write_tokenizer(folder: Path, fields: Mapping[str, Any], source: str) -> Tokenizer:
    """Write the tokenizer of a GGUF file as tokenizer.json and tokenizer_config.json.

    Parameters
    ----------
    folder : pathlib.Path
        It exists.
    fields, source
        As for :func:`lora_np.pretrained.tokenizer_of_gguf`.

    Returns
    -------
    Tokenizer
        Of the fields.
    """
    tokenizer, backend = tokenizer_of_gguf(fields, source), backend_of_gguf(fields, source)
    names = {"bos": "bos", "eos": "eos", **FURTHER}
    tokens = fields[f"{FIELD}tokens"]
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for theirs, ours in names.items():
        token = token_of(fields, ours, tokens, source)
        if token is not None:
            config[f"{theirs}_token"] = token
    if tokenizer.add_bos and tokenizer.bos is not None:
        bos = config["bos_token"]
        backend.post_processor = tokenizers_package().processors.TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", "$B:1"], special_tokens=[(bos, tokenizer.bos)]
        )
    if tokenizer.template is not None:
        config["chat_template"] = tokenizer.template.source
    backend.save(str(folder / "tokenizer.json"))
    save_json(folder / "tokenizer_config.json", config)
    return tokenizer
