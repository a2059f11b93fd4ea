"""Tokenizers: from GGUF fields, from folders, streams of tokens, conversations."""

import json
import sys

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st

from lora_np.files import CheckpointError
from lora_np.pretrained import TokenizerError, tokenizer_in, tokenizer_of_gguf
from lora_np.pretrained.tokenizer import byte_characters
from tests.pretrained.test_template import LLAMA3, THINKING
from tests.pretrained.tiny_tokenizer import (
    SPECIAL,
    TEXT,
    tiny_fields,
    tiny_tokenizer,
    write_tiny_tokenizer,
)
from tests.smollm2 import smollm2_file

TINY = tiny_tokenizer()
VARIED = [
    "",
    " ",
    "\n\n",
    "  a  b ",
    "12 345",
    "don't",
    "x\ty\r\nz",
    "秩 é é",
    "👩‍👩‍👧 🎉",
    "\u200b\x00",
]
ASKED = [
    {"role": "system", "content": "you are a helpful assistant."},
    {"role": "user", "content": "how many shops?"},
    {"role": "assistant", "content": "there are 12 shops."},
    {"role": "user", "content": "and orders?"},
    {"role": "assistant", "content": "340"},
]
START, END = 1, 2
NEWLINE = TINY.encode("\n")


# --- where it comes from -------------------------------------------------------------------------


def test_gguf_fields_and_a_folder_make_the_same_tokenizer(tmp_path):
    folder = tokenizer_in(write_tiny_tokenizer(tmp_path / "model"))
    for text in [*VARIED, TEXT, "".join(VARIED)]:
        assert folder.encode(text) == TINY.encode(text)
        assert TINY.decode(TINY.encode(text)) == text
    assert folder.chat(ASKED, True) == TINY.chat(ASKED, True)
    names = ("vocab_size", "bos", "eos", "ends", "add_bos")
    assert [getattr(folder, n) for n in names] == [340, START, END, (END,), False]
    assert [getattr(TINY, n) for n in names] == [340, START, END, (END,), False]


def test_every_byte_has_a_character_of_its_own():
    table = byte_characters()
    assert sorted(table.values()) == list(range(256)) and table["Ġ"] == 32 and table["Ċ"] == 10
    assert set(table) == set(tokenizers.pre_tokenizers.ByteLevel.alphabet())


@pytest.mark.parametrize(
    "pre, text, pieces",
    [
        ("gpt-2", "a 1234\n\n  b's", ["a", " 1234", "\n\n ", " b", "'s"]),
        ("smollm", "a 1234\n\n  b's", ["a", " ", "1", "2", "3", "4", "\n\n ", " b", "'s"]),
        ("starcoder", "a 12", ["a", " ", "1", "2"]),
        ("llama-bpe", "a 1234\n\n  b'S!\n", ["a", " ", "123", "4", "\n\n", " ", " b", "'S", "!\n"]),
        ("qwen2", "a 12\n\n  b'S!\n", ["a", " ", "1", "2", "\n\n", " ", " b", "'S", "!\n"]),
        ("default", "a+1234", ["a", "+", "123", "4"]),
    ],
)  # fmt: skip
def test_each_name_cuts_a_text_into_its_own_pieces(pre, text, pieces):
    backend = tiny_tokenizer(pre=pre)._special
    found = [text[a:b] for _, (a, b) in backend.pre_tokenizer.pre_tokenize_str(text)]
    assert found == pieces


def test_smollm_and_gpt2_differ_where_a_number_follows_a_space():
    fields = tiny_fields()
    changes = {
        "tokens": [*fields["tokenizer.ggml.tokens"], "12"],
        "token_type": [3] * 3 + [1] * 338,
    }
    changes["merges"] = [*fields["tokenizer.ggml.merges"], "1 2"]
    lengths = [len(tiny_tokenizer(pre=p, **changes).encode("a 12")) for p in ("gpt-2", "smollm")]
    assert lengths == [3, 4]


def test_qwen2_composes_characters_first():
    assert tiny_tokenizer(pre="qwen2").encode("e\u0301") == TINY.encode("é")
    assert TINY.encode("e\u0301") != TINY.encode("é")


def test_llama3_takes_a_piece_that_is_a_token_whole():
    """Its vocabulary holds words that no merges lead to."""
    tokens = [*tiny_fields()["tokenizer.ggml.tokens"], "xyz"]
    kinds = [3] * 3 + [1] * 338
    for pre, length in (("llama-bpe", 1), ("gpt-2", 3)):
        assert len(tiny_tokenizer(pre=pre, tokens=tokens, token_type=kinds).encode("xyz")) == length


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model": "llama"}, "model = 'llama', expected 'gpt2'"),
        ({"model": "bert"}, "model = 'bert', expected 'gpt2'"),
        ({"model": None}, "model = None, expected 'gpt2'"),
        ({"pre": "viking"}, "pre = 'viking', expected one of gpt-2, smollm"),
        ({"pre": 7}, "pre = 7, expected one of"),
        ({"tokens": None}, "tokens is missing"),
        ({"tokens": [1, 2]}, "not a list of strings"),
        ({"tokens": ["a", "a"], "token_type": [1, 1]}, "a token twice"),
        ({"token_type": [1]}, "token_type does not have one entry"),
        ({"merges": None}, "merges is missing"),
        ({"merges": ["Ġ nowhere"]}, "merges do not fit the tokens"),
        ({"merges": ["alone"]}, "merges holds 'alone', expected two parts"),
        ({"eos_token_id": 340}, "eos_token_id = 340, expected a token's id"),
        ({"bos_token_id": "x"}, "bos_token_id = 'x', expected a token's id"),
    ],
)
def test_fields_that_make_no_tokenizer_are_refused_by_name(changes, message):
    with pytest.raises(TokenizerError, match=message) as caught:
        tokenizer_of_gguf(tiny_fields(**changes), "model.gguf")
    text = str(caught.value)
    assert text.startswith("model.gguf: ") and "\n" not in text and len(text) < 300


def test_bos_is_added_where_the_file_or_its_kind_says_so():
    assert tiny_tokenizer(pre="llama-bpe", add_bos_token=None).add_bos
    assert tiny_tokenizer(pre="llama-bpe", add_bos_token=False).add_bos is False
    assert tiny_tokenizer(add_bos_token=True).add_bos
    assert tiny_tokenizer(add_bos_token=True).encode("a") == TINY.encode("a")  # only said


def test_a_folder_says_what_ends_an_answer_in_many_ways(tmp_path):
    folder = write_tiny_tokenizer(
        tmp_path / "a", eos_token={"content": "<|endoftext|>"}, bos_token=None
    )
    assert tokenizer_in(folder).ends == (0, 2)
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 0]}')
    assert tokenizer_in(folder).ends == (0, 5, 2)
    (folder / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert tokenizer_in(folder).ends == (0, 7, 2) and tokenizer_in(folder).bos is None
    write_tiny_tokenizer(folder, eos_token=None)
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<|im_end|>"}')
    assert tokenizer_in(folder).ends == (2, 7)


def test_a_folder_keeps_its_template_in_three_places(tmp_path):
    folder = write_tiny_tokenizer(tmp_path / "a", template="one")
    assert tokenizer_in(folder).chat_text(ASKED, True) == "one"
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "two"}]
    write_tiny_tokenizer(folder, template=named)
    assert tokenizer_in(folder).chat_text(ASKED, True) == "two"
    (folder / "chat_template.jinja").write_text("three")
    assert tokenizer_in(folder).chat_text(ASKED, True) == "three"


def test_a_post_processor_that_adds_bos_is_noticed_and_not_applied(tmp_path):
    folder = write_tiny_tokenizer(tmp_path / "a")
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    backend.enable_truncation(3)
    backend.save(str(folder / "tokenizer.json"))
    tokenizer = tokenizer_in(folder)
    assert tokenizer.add_bos and tokenizer.encode(TEXT) == TINY.encode(TEXT)


def test_folders_without_a_tokenizer_are_refused(tmp_path):
    with pytest.raises(TokenizerError, match=r"has no tokenizer\.json"):
        tokenizer_in(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(TokenizerError, match=r"only SentencePiece's tokenizer\.model"):
        tokenizer_in(tmp_path)
    for content in ("", "{", "[]", "{}", '{"model": {"type": "BPE"}}', "\ufeff{}"):
        (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
        with pytest.raises(TokenizerError, match="cannot be read") as caught:
            tokenizer_in(tmp_path)
        assert "\n" not in str(caught.value)


def test_broken_companions_of_a_tokenizer_are_refused(tmp_path):
    folder = write_tiny_tokenizer(tmp_path / "a")
    for name in ("tokenizer_config.json", "generation_config.json", "special_tokens_map.json"):
        before = (folder / name).read_bytes() if (folder / name).exists() else None
        for content in ("[]", "{"):
            (folder / name).write_text(content)
            with pytest.raises(CheckpointError, match=name):
                tokenizer_in(folder)
        (folder / name).unlink() if before is None else (folder / name).write_bytes(before)
    write_tiny_tokenizer(folder, eos_token="<none>")
    with pytest.raises(TokenizerError, match="has no token '<none>'"):
        tokenizer_in(folder)


def test_words_split_at_spaces_are_no_vocabulary_of_ours(tmp_path):
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match="neither a byte-level nor a SentencePiece"):
        tokenizer_in(tmp_path)


def test_without_tokenizers_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(TokenizerError, match=r"pip install 'lora_np\[llm\]'"):
        tokenizer_of_gguf(tiny_fields())


# --- text and tokens -----------------------------------------------------------------------------


def streamed(tokenizer, ids):
    stream = tokenizer.stream()
    return [*(stream.push(i) for i in ids), stream.flush()]


@given(st.text())
@example("e\u0301 👩‍👩‍👧 \U0001f1e9\U0001f1ea \ufffd \u0000")
def test_a_text_comes_back_from_its_tokens_whole_and_from_a_stream(text):
    ids = TINY.encode(text)
    assert TINY.decode(ids) == text
    parts = streamed(TINY, ids)
    assert "".join(parts) == text and parts[-1] == ""
    assert sum("\ufffd" in part for part in parts) <= text.count("\ufffd")


@given(st.lists(st.integers(0, 345), max_size=40))
def test_a_stream_of_any_tokens_is_what_they_decode_to(ids):
    expected = TINY._special.decode([i for i in ids if i < 340], skip_special_tokens=True)
    assert TINY.decode(ids) == "".join(streamed(TINY, ids)) == expected


def test_bytes_are_held_back_until_a_character_is_whole():
    ids = TINY.encode("🎉")
    assert streamed(TINY, ids) == ["", "", "", "🎉", ""] and len(ids) == 4
    assert streamed(TINY, ids[:3]) == ["", "", "", "\ufffd"]
    assert streamed(TINY, [*ids[:3], *TINY.encode("a")]) == ["", "", "", "\ufffda", ""]


def test_special_tokens_have_no_text():
    assert TINY.decode([START, *TINY.encode("a"), END, -1, 10**6]) == "a"


def test_markers_are_text_unless_they_are_meant():
    text = "a<|im_end|>b"
    plain, meant = TINY.encode(text), TINY.encode(text, special=True)
    assert END not in plain and TINY.decode(plain) == text
    assert meant == [*TINY.encode("a"), END, *TINY.encode("b")]


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(TokenizerError, match="surrogate"):
        TINY.encode("\ud800")


def sentencepiece(folder):
    """Write a vocabulary like Llama 2's: spaces are ▁, bytes are tokens of their own."""
    words = ["▁", "▁how", "▁many", "h", "o", "w", "m", "a", "n", "y", "ho", "how", "ma", "ny"]
    words += ["many", "\n"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *words]
    merges = [("h", "o"), ("ho", "w"), ("▁", "how"), ("m", "a"), ("n", "y"), ("ma", "ny")]
    merges += [("▁", "many")]
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            {t: i for i, t in enumerate(tokens)}, merges, byte_fallback=True, unk_token="<unk>"
        )
    )
    n, d = tokenizers.normalizers, tokenizers.decoders
    backend.normalizer = n.Sequence([n.Prepend("▁"), n.Replace(" ", "▁")])
    backend.decoder = d.Sequence(
        [d.Replace("▁", " "), d.ByteFallback(), d.Fuse(), d.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(
        [tokenizers.AddedToken(t, normalized=False, special=True) for t in tokens[:3]]
    )
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}{{ m.role + '\n' + m.content + eos_token + '\n' }}"
    template += "{% endfor %}{% if add_generation_prompt %}{{ 'assistant\n' }}{% endif %}"
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer_in(folder)


def test_a_sentencepiece_vocabulary_in_tokenizer_json_works_too(tmp_path):
    tokenizer = sentencepiece(tmp_path / "a")
    for text in ("how many", " how", "é 🎉\nhow", "", "  "):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == tokenizer._special.decode(ids) == text
        assert "".join(streamed(tokenizer, ids)) == text
    assert tokenizer.encode("how many") == tokenizer._special.encode("how many").ids
    conversation = [{"role": "user", "content": "how"}, {"role": "assistant", "content": "many"}]
    ids, [(start, stop)] = tokenizer.spans(conversation)
    assert ids == tokenizer._special.encode(tokenizer.chat_text(conversation, False)).ids
    assert ids[stop - 1] == tokenizer.eos and tokenizer.decode(ids[start:stop]) == "many"


# --- conversations -------------------------------------------------------------------------------


def test_spans_cover_each_answer_and_its_end_and_nothing_else():
    ids, spans = TINY.spans(ASKED)
    assert ids == TINY.chat(ASKED, False)
    for (start, stop), i in zip(spans, (2, 4), strict=True):
        assert ids[:start] == TINY.chat(ASKED[:i], True)
        assert ids[start:stop] == [*TINY.encode(ASKED[i]["content"]), END]
        assert ids[stop : stop + 1] == NEWLINE
    assert TINY.spans(ASKED, last=True) == (ids, spans[1:])


def test_without_a_system_message_smollm_writes_its_own_in_training_and_in_chat():
    ids, [(start, _)] = TINY.spans(ASKED[1:3])
    assert "named SmolLM" in TINY.decode(ids) and ids[:start] == TINY.chat(ASKED[1:2], True)


WORDS = st.text(st.sampled_from("ab \n\t'1é🎉"), max_size=8)


@given(st.lists(WORDS, min_size=2, max_size=6))
@example(["a", "\n\nb"])
@example(["a\n", " "])
def test_what_is_trained_on_begins_as_a_chat_begins(contents):
    roles = ["user", "assistant"] * 3
    messages = [{"role": r, "content": c} for r, c in zip(roles, contents)]
    ids, spans = TINY.spans(messages)
    assert ids == TINY.chat(messages, False)
    assert TINY.decode(ids) == "".join(
        ["system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face\n"]
        + [f"{m['role']}\n{m['content']}\n" for m in messages]
    )
    for (start, stop), i in zip(spans, range(1, len(messages), 2), strict=True):
        assert ids[:start] == TINY.chat(messages[:i], True)
        assert ids[start:stop] == [*TINY.encode(messages[i]["content"]), END]


@given(st.lists(st.sampled_from([*SPECIAL, "a", " ", "\n", "<|", "|>", "im_end", "\ue000"])))
@example(["<|im_end|>", "\n", "<|im_start|>", "system"])
@example(["<|im_", "<|im_end|>", "end|>"])
def test_a_message_cannot_end_a_turn_or_begin_one(parts):
    content = "".join(parts)
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
    ids, [(start, stop)] = TINY.spans(messages)
    assert [i for i in ids if i < 3] == [START, END] * 3  # system, user, assistant
    assert TINY.decode(ids[start:stop]) == content and TINY.decode(ids).count(content) >= 2


def test_a_role_cannot_either():
    messages = [{"role": "user<|im_end|>", "content": "a"}]
    assert [i for i in TINY.chat(messages, False) if i < 3] == [START, END] * 2


def test_llama3_labels_its_end_of_turn(tmp_path):
    fields = tiny_fields(chat_template=LLAMA3, bos_token_id=0, eos_token_id=0)
    names = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    fields["tokenizer.ggml.tokens"] += names
    fields["tokenizer.ggml.token_type"] += [3, 3, 3]
    tokenizer = tokenizer_of_gguf(fields)
    ids, spans = tokenizer.spans(ASKED)
    assert tokenizer.ends == (0, 2, 342) and ids[0] == 0 and ids.count(0) == 1
    for (start, stop), i in zip(spans, (2, 4), strict=True):
        assert ids[start:stop] == [*tokenizer.encode(ASKED[i]["content"]), 342]


def test_a_template_that_rewrites_earlier_turns_is_refused_unless_the_last_is_enough():
    tokenizer = tiny_tokenizer(chat_template=THINKING)
    thought = [*ASKED[:2], {"role": "assistant", "content": "<think>a</think>b"}, *ASKED[3:]]
    with pytest.raises(TokenizerError, match=r"message 3 .* last answer only") as caught:
        tokenizer.spans(thought)
    assert "\n" not in str(caught.value)
    ids, [(start, stop)] = tokenizer.spans(thought, last=True)
    assert tokenizer.decode(ids[start:stop]) == "<think>\n\n</think>\n\n340"
    assert tokenizer.with_template("chatml").spans(thought)[0] == TINY.chat(thought, False)


def test_an_answer_that_nothing_ends_is_refused():
    plain = "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ '\n' }}{% endfor %}"
    plain += "{% if add_generation_prompt %}assistant: {% endif %}"
    with pytest.raises(TokenizerError, match="no end marker after an answer"):
        tiny_tokenizer(chat_template=plain).spans(ASKED)


def test_a_conversation_that_begins_with_an_answer_is_refused_where_it_cannot_be_learnt():
    answer = [ASKED[2]]
    with pytest.raises(TokenizerError, match="message 1"):
        TINY.spans(answer)  # SmolLM's template would put its system message first
    ids, [(start, stop)] = tiny_tokenizer(chat_template="chatml").spans(answer)
    assert TINY.decode(ids[start:stop]) == ASKED[2]["content"] and ids[stop - 1] == END


def test_without_a_template_one_line_says_what_to_do():
    tokenizer = tiny_tokenizer(chat_template=None)
    for use in (lambda: tokenizer.chat(ASKED, True), lambda: tokenizer.spans(ASKED)):
        with pytest.raises(TokenizerError, match=r"no chat template: .* --template chatml"):
            use()
    with_one = tokenizer.with_template("chatml")
    assert with_one.chat(ASKED, True) == TINY.chat(ASKED, True) and tokenizer.template is None


@pytest.mark.peers
def test_chat_tokens_are_those_of_transformers(tmp_path):
    import transformers

    folder = write_tiny_tokenizer(tmp_path / "a")
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), tokenizer_in(folder)
    varied = [{"role": "user", "content": text} for text in VARIED]
    for messages in (ASKED, ASKED[1:4], varied):
        for follows in (True, False):
            expected = theirs.apply_chat_template(
                messages, tokenize=True, add_generation_prompt=follows, return_dict=False
            )
            assert ours.chat(messages, follows) == expected
    for text in [*VARIED, TEXT]:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)


# --- the real file -------------------------------------------------------------------------------


def two_hundred_strings():
    """Return varied texts: words, numbers, code, spaces, languages, emoji, controls."""
    parts = [*VARIED, TEXT, "SELECT count(*) FROM t WHERE a >= 10.5;", "def f(x):\n\treturn x**2"]
    parts += ["Ünïcödé ÀÉ", "مرحبا", "日本語123", "one  two   three", "I'll we've YOU'RE", "½ ² ٣"]
    return [a + b for a in parts for b in parts][:200]


@pytest.mark.llm
def test_the_tokens_of_smollm2_are_those_that_tokenizers_makes_of_its_vocabulary():
    from lora_np.files.gguf import GgufFile

    fields = GgufFile.open(smollm2_file()).fields
    ours = tokenizer_of_gguf(fields)
    vocabulary = {token: i for i, token in enumerate(fields["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    strings = two_hundred_strings()
    assert len(strings) == 200 and ours.vocab_size == 49152 and ours.ends == (2,)
    for text in strings:
        assert ours.encode(text) == backend.encode(text).ids
        assert ours.decode(ours.encode(text)) == text
    other = tokenizer_of_gguf({**fields, "tokenizer.ggml.pre": "gpt-2"})
    assert 0 < sum(other.encode(text) != ours.encode(text) for text in strings) < 200


@pytest.mark.parametrize(
    "name, value", [("dropout", 0.5), ("continuing_subword_prefix", "a" * 1000)]
)
def test_a_vocabulary_that_draws_or_panics_is_refused(tmp_path, capfd, name, value):
    folder = write_tiny_tokenizer(tmp_path / "a")
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"][name] = value
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match=f"model.{name} = .*, expected null") as caught:
        tokenizer_in(folder)
    assert len(str(caught.value)) < 400 + len(str(folder)) and capfd.readouterr().err == ""


def test_a_long_name_of_a_token_is_cut_in_an_error(tmp_path):
    folder = write_tiny_tokenizer(tmp_path / "a", eos_token="\x1b" * 9999)
    with pytest.raises(TokenizerError, match="has no token") as caught:
        tokenizer_in(folder)
    assert len(str(caught.value)) < 400 + len(str(folder))


def test_a_template_that_writes_nothing_is_refused():
    silent = TINY.with_template("{% if false %}x{% endif %}")
    for use in (lambda: silent.chat(ASKED[:2], True), lambda: silent.spans(ASKED)):
        with pytest.raises(TokenizerError, match="chatml"):
            use()
