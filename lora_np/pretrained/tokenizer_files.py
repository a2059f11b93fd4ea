r"""Build a tokenizer from the fields of a GGUF file, or from a folder of Hugging Face.

A GGUF file holds the vocabulary and the merges, but only the NAME of the regular expressions that
cut a text into pieces (``tokenizer.ggml.pre``); ``PIECES`` holds them. With other expressions
the tokens differ and every text still decodes well, so that nothing would show the mistake: an
unknown name is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_np.files import load_json
from lora_np.pretrained.tokenizer import Tokenizer, TokenizerError, tokenizers_package
from lora_np.reading import brief, open_file, shown

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
SPACES = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PIECES = {  # the expressions that cut a text, one after the other, by the name in the file
    "gpt-2": (GPT2,),
    "smollm": (r"\p{N}", GPT2),
    "starcoder": (r"\p{N}", GPT2),
    "llama-bpe": (WORDS + r"\p{N}{1,3}" + SPACES,),
    "qwen2": (WORDS + r"\p{N}" + SPACES,),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
}
WHOLE_WORDS = ("llama-bpe",)  # a piece that is a token is not put together from merges
COMPOSED = ("qwen2",)  # the text is brought to Unicode's form NFC first
STARTED = ("llama-bpe",)  # BOS unless the file says otherwise
CONTROL, USER_DEFINED = 3, 4  # kinds of tokens in tokenizer.ggml.token_type
FIELD = "tokenizer.ggml."
ONLY_SENTENCEPIECE = "tokenizer.model"


def tokenizer_of_gguf(fields: Mapping[str, Any], source: str = "the GGUF file") -> Tokenizer:
    """Build the tokenizer that the fields of a GGUF file describe.

    Parameters
    ----------
    fields : mapping of str to object
        The metadata of the file: ``tokenizer.ggml.tokens`` and its siblings.
    source : str
        The file's name, for error messages.

    Returns
    -------
    Tokenizer

    Raises
    ------
    TokenizerError
        If a field is missing or wrong, or the vocabulary is of another kind than byte-level BPE.

    Examples
    --------
    >>> from lora_np.pretrained import tokenizer_of_gguf
    >>> fields = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
    ...           "tokenizer.ggml.tokens": ["<eos>", "a", "b", "ab"],
    ...           "tokenizer.ggml.token_type": [3, 1, 1, 1],
    ...           "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.eos_token_id": 0}
    >>> tokenizer = tokenizer_of_gguf(fields)
    >>> tokenizer.encode("abba"), tokenizer.decode([3, 2, 1, 0]), tokenizer.ends
    ([3, 2, 1], 'abba', (0,))
    """
    backend, tokens = backend_of_gguf(fields, source), fields[f"{FIELD}tokens"]
    bos, eos = (token_of(fields, name, tokens, source) for name in ("bos", "eos"))
    template = fields.get("tokenizer.chat_template")
    starts = fields.get(f"{FIELD}pre") in STARTED
    return Tokenizer(
        backend,
        bos=bos,
        eos=eos,
        template=template if isinstance(template, str) else None,
        add_bos=bool(fields.get(f"{FIELD}add_bos_token", starts)),
        source=source,
    )


def backend_of_gguf(fields: Mapping[str, Any], source: str) -> Any:
    """Return the ``tokenizers.Tokenizer`` that the fields of a GGUF file describe.

    Parameters
    ----------
    fields, source
        As for :func:`tokenizer_of_gguf`.

    Raises
    ------
    TokenizerError
        As :func:`tokenizer_of_gguf` raises it.
    """
    model, pre = fields.get(f"{FIELD}model"), fields.get(f"{FIELD}pre", "default")
    if model != "gpt2":
        raise TokenizerError(
            f"{source}: {FIELD}model = {shown(model)}, expected 'gpt2' (byte-level BPE): use the "
            "model's folder of Hugging Face, which has a tokenizer.json"
        )
    if not isinstance(pre, str) or pre not in PIECES:
        raise TokenizerError(
            f"{source}: {FIELD}pre = {shown(pre)}, expected one of {', '.join(PIECES)}"
        )
    tokens = _strings(fields, "tokens", source)
    ids = {token: i for i, token in enumerate(tokens)}
    if len(ids) < len(tokens):
        raise TokenizerError(f"{source}: {FIELD}tokens holds a token twice")
    backend = _byte_level(ids, _strings(fields, "merges", source), pre, source)
    _mark_added(backend, tokens, fields.get(f"{FIELD}token_type", [1] * len(tokens)), source)
    return backend


def _strings(fields: Mapping[str, Any], name: str, source: str) -> list[str]:
    values = fields.get(FIELD + name)
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        raise TokenizerError(f"{source}: {FIELD}{name} is missing or not a list of strings")
    return values


def _mark_added(backend: Any, tokens: list[str], kinds: Any, source: str) -> None:
    """Make tokens that are whole words of the model, and never come from merges."""
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise TokenizerError(f"{source}: {FIELD}token_type does not have one entry for each token")
    added = tokenizers_package().AddedToken
    for kind, special in ((CONTROL, True), (USER_DEFINED, False)):
        chosen = [token for token, found in zip(tokens, kinds) if found == kind]
        backend.add_tokens([added(t, normalized=False, special=special) for t in chosen])


def token_of(fields: Mapping[str, Any], name: str, tokens: list[str], source: str) -> str | None:
    """Return the text of a token, such as "bos", whose id is a field; None without the field."""
    i = fields.get(f"{FIELD}{name}_token_id")
    if i is None:
        return None
    if not isinstance(i, int) or not 0 <= i < len(tokens):
        raise TokenizerError(
            f"{source}: {FIELD}{name}_token_id = {shown(i)}, expected a token's id"
        )
    return tokens[i]


def _byte_level(ids: dict[str, int], merges: list[str], pre: str, source: str) -> Any:
    """Return a backend from a vocabulary, its merges and the name of its expressions."""
    package = tokenizers_package()
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    wrong = next((merge for merge, pair in zip(merges, pairs) if len(pair) < 2), None)
    if wrong is not None:
        raise TokenizerError(f"{source}: {FIELD}merges holds {shown(wrong)}, expected two parts")
    try:
        bpe = package.models.BPE(vocab=ids, merges=pairs, ignore_merges=pre in WHOLE_WORDS)
    except Exception as problem:  # the package raises no narrower class
        raise TokenizerError(
            f"{source}: {FIELD}merges do not fit the tokens ({brief(str(problem), 100)})"
        ) from None
    backend = package.Tokenizer(bpe)
    splits = [
        package.pre_tokenizers.Split(package.Regex(piece), "isolated") for piece in PIECES[pre]
    ]
    to_bytes = package.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = package.pre_tokenizers.Sequence([*splits, to_bytes])
    backend.decoder = package.decoders.ByteLevel()
    if pre in COMPOSED:
        backend.normalizer = package.normalizers.NFC()
    return backend


def tokenizer_in(folder: str | Path) -> Tokenizer:
    """Build the tokenizer of a folder of Hugging Face.

    Parameters
    ----------
    folder : str or Path
        It holds tokenizer.json, and as a rule tokenizer_config.json. Nothing is downloaded.

    Returns
    -------
    Tokenizer

    Raises
    ------
    TokenizerError
        If the folder has no tokenizer.json, or a file is broken.
    """
    folder = Path(folder)
    path = folder / "tokenizer.json"
    if not path.is_file():
        only = " only SentencePiece's tokenizer.model and" if _has(folder) else ""
        raise TokenizerError(
            f"{folder} has{only} no tokenizer.json: save it with transformers' "
            "AutoTokenizer.save_pretrained"
        )
    package = tokenizers_package()
    with open_file(path, TokenizerError) as file:
        data = file.read()
    _refuse_pieces(data, path)
    try:
        backend = package.Tokenizer.from_buffer(data)
    except Exception as problem:  # the package raises no narrower class
        raise TokenizerError(f"{path} cannot be read ({brief(str(problem))})") from None
    config = config_in(folder)
    bos, eos = (content_of(config.get(f"{name}_token")) for name in ("bos", "eos"))
    ends = _json(folder, "generation_config.json").get("eos_token_id")
    ends = [i for i in (ends if isinstance(ends, list) else [ends]) if type(i) is int]
    first = backend.encode("").ids[:1]
    return Tokenizer(
        backend,
        bos=bos,
        eos=eos,
        template=_template(folder, config),
        ends=ends,
        add_bos=bool(config.get("add_bos_token", False)) or _is(backend, bos, first),
        source=str(folder),
    )


def _refuse_pieces(data: bytes, path: Path) -> None:
    """Raise an error if words are split at random, or by a mark before a piece.

    With a dropout, the tokens of a text would differ from one reading to the next. The package
    panics at a merge that is shorter than the mark.
    """
    try:
        model = json.loads(data)["model"]
        found = {name: model.get(name) for name in ("dropout", "continuing_subword_prefix")}
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return  # the package says what is wrong
    for name, value in found.items():
        if value:
            raise TokenizerError(f"{path}: model.{name} = {shown(value)}, expected null")


def config_in(folder: Path) -> dict[str, Any]:
    """Return the fields of a tokenizer's config; none without the file."""
    return _json(folder, "special_tokens_map.json") | _json(folder, "tokenizer_config.json")


def _has(folder: Path) -> bool:
    return (folder / ONLY_SENTENCEPIECE).is_file()


def _is(backend: Any, token: str | None, ids: list[int]) -> bool:
    return token is not None and ids == [backend.token_to_id(token)]


def _json(folder: Path, name: str) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one if there is no file."""
    if not (folder / name).is_file():
        return {}
    fields = load_json(folder / name)
    if not isinstance(fields, dict):
        raise TokenizerError(f"{folder / name} does not hold an object")
    return fields


def content_of(token: Any) -> str | None:
    """Return a token's text, which a config writes as a string or as an object."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _template(folder: Path, config: dict[str, Any]) -> str | None:
    """Return the chat template: a file of its own, or a field of the config."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        with open_file(path, TokenizerError) as file:
            return file.read(2**20).decode("utf-8", "replace")
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
