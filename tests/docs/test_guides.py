"""docs/guides/: the blocks of each page run in order, and print what the page shows."""

import hashlib
import json
import re
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import lora_np.experiments.rank_sweep
from lora_np.adapters import open_adapter
from lora_np.cli import parser
from lora_np.data import read_records, standard_library
from lora_np.finetune import Settings, read_toml
from lora_np.finetune.dry_run import dry_run
from lora_np.methods import adapters
from lora_np.serve import Counts
from lora_np.serve.api import MOST_STOPS, SHARED, chat_of, completion_of
from lora_np.serve.http.app import make_app
from lora_np.serve.http.metrics import Metrics
from lora_np.serve.http.service import Limits
from tests.docs.pages import (
    NUMBER,
    ROOT,
    assert_prints,
    blocks,
    output_of_block,
    output_of_command,
    session,
)
from tests.finetune.tiny import write_data, write_llama

GUIDES = ROOT / "docs" / "guides"
# .ci/run installs into a fresh environment; a real model is 98 MB. test_docs parses the commands.
NOT_HERE = ("pip", "python3 -m venv", ". .venv", "lora-np finetune", "lora-np sweep --model")
NOT_HERE += ("lora-np export",)
INSTEAD = {"lora-np sweep": "lora-np sweep --quick --out whole"}  # the whole one takes minutes
# Other processors and BLAS libraries round otherwise, and training carries that on: another rate
# wins, one more is tried, a standard error of three seeds differs. The losses stay within this.
OF_TRAINING = 0.05
# The texts are Python's own source and differ from release to release. Under another one than the
# pages were printed with, other rates win and other ranks are flat: all must run, and print.
PAGES_TEXT = "d896c0e055e3"  # of Python 3.11.7
SAME_TEXT = hashlib.sha256(standard_library().encode()).hexdigest().startswith(PAGES_TEXT)


def read(name):
    return (GUIDES / name).read_text(encoding="utf-8")


def losses(text):
    """Return the label of each row of a printed table, and its losses: figures from 1 to 10."""
    table = [re.split(r" {2,}", line.strip()) for line in text.splitlines()]
    figures = [[re.match(r"[1-9]\.\d+", cell) for cell in row[1:]] for row in table]
    return [(row[0], [float(x[0]) for x in found if x]) for row, found in zip(table, figures)]


def assert_trained_alike(said, shown):
    """Assert that the lines are of the same kinds, and the losses in them about the same."""
    kinds, expected = (
        {NUMBER.sub("#", line.split("  ")[0]) for line in text.split("\n")}
        for text in (said, shown)
    )
    assert kinds == expected
    found, other = ({label: row for label, row in losses(text) if row} for text in (said, shown))
    assert list(found) == list(other)
    for label, row in found.items():
        assert row == pytest.approx(other[label], rel=OF_TRAINING), label


def assert_shows(said, shown, trained):
    if not trained:
        assert_prints(said, shown)
    elif SAME_TEXT:
        assert_trained_alike(said, shown)
    else:
        assert said.strip()


def walk(name, folder):
    """Run the blocks of a page in order; return what its Python blocks defined."""
    page = sys.modules["page"] = ModuleType("page")  # a session's classes can be pickled
    names, said, of_a_sweep, trained = vars(page), "", False, False
    for language, body in blocks(read(name)):
        if language == "python":
            said = output_of_block(body, name, names)
            trained = of_a_sweep or "data.standard_library" in body
        elif language == "text":
            assert_shows(said, body, trained)
        elif language == "console":
            command, shown = session(body)
            said = output_of_command(command, folder)
            of_a_sweep = of_a_sweep or " sweep " in command
            assert_shows(said, shown, trained=of_a_sweep)
        elif language == "sh":
            for line in body.splitlines():
                if not line.startswith(NOT_HERE):
                    output_of_command(INSTEAD.get(line, line), folder)
    return names


@pytest.mark.parametrize(
    "name",
    [
        "own_data.md",
        pytest.param("own_adapter.md", marks=pytest.mark.slow),
        pytest.param("letters.md", marks=pytest.mark.slow),
        pytest.param("first_run.md", marks=pytest.mark.docs),
        pytest.param("own_text.md", marks=pytest.mark.docs),
    ],
)
def test_the_commands_of_a_guide_run_in_order_and_print_what_it_shows(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    walk(name, tmp_path)


def test_every_example_line_of_the_guide_to_your_own_data_is_read(tmp_path):
    lines = [body for language, body in blocks(read("own_data.md")) if language == "json"]
    said = []
    for i, line in enumerate(lines):
        path = tmp_path / f"{i}.jsonl"
        path.write_text(line, encoding="utf-8")
        (record,) = read_records(path)
        said.append([m["role"] for m in record.messages] or record.text)
    both = ["user", "assistant"]
    assert said == [both, both, ["system", *both], json.loads(lines[-1])["text"]]


def test_a_dry_run_prints_what_the_guide_to_your_own_data_shows_and_its_settings_are_read(tmp_path):
    """The page shows SmolLM2's figures; on a tiny model the lines are the same but for them."""
    page = blocks(read("own_data.md"))
    shown, smaller = (body for language, body in page if not language and "together" in body)
    (toml,) = (body for language, body in page if language == "toml")
    (tmp_path / "run.toml").write_text(toml, encoding="utf-8")
    given = read_toml(tmp_path / "run.toml")
    assert Settings(**given).r == 16 and given["model"] == "smollm2"
    model, data = write_llama(tmp_path / "base"), write_data(tmp_path / "my.jsonl", 10)
    said = dry_run(Settings(model=str(model), data=str(data), jobs=2))

    def labels(text):
        table = text[text.index("memory ") :].partition("together")[0]
        return [re.split(r" {2,}", line)[0] for line in table.splitlines()]

    assert labels(said) == labels(shown) == labels(smaller)
    steps = [re.search(r"^\d+ steps: .*$", text, re.M)[0] for text in (said, shown)]
    assert len({NUMBER.sub("#", line) for line in steps}) == 1
    assert said.startswith("9 samples to train on, 1 to validate on, ")
    assert [text.splitlines()[-1][0] for text in (said.rstrip(), shown.rstrip())] == [">", ">"]


def test_the_defaults_that_the_guide_to_your_own_text_names_are_the_sweeps():
    rows = re.findall(r"^\| (`--.*`) \| ([^|]+) \|", read("own_text.md"), re.M)
    defaults = lora_np.experiments.rank_sweep.TextSettings()
    for options, values in rows:
        names = [name.replace("-", "_") for name in re.findall(r"`--([\w-]+)`", options)]
        assert [str(getattr(defaults, name)) for name in names] == values.split(", ")
    assert len(rows) >= 6
    factors = defaults.steps, defaults.batch_size, defaults.block_size
    text = " ".join(read("own_text.md").split())
    assert f"{' x '.join(map(str, factors))} = {np.prod(factors):,}" in text
    assert f"`--windows` {defaults.windows} windows of {defaults.block_size} bytes" in text


@pytest.fixture(scope="module")
def own_method(tmp_path_factory):
    """Run the page; return its names and the folder that it wrote into."""
    folder = tmp_path_factory.mktemp("own_method")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return walk("own_method.md", folder), folder


@pytest.mark.slow
def test_at_the_start_only_B_has_a_gradient(own_method):
    names, _ = own_method
    inputs = {**names["inputs"], "B": np.zeros_like(names["inputs"]["B"])}
    y, cache = names["gain_forward"](*inputs.values(), scale=0.7)
    _, _, dA, dg, dB = names["gain_backward"](np.ones_like(y), cache)
    assert not dA.any() and not dg.any() and dB.any()


@pytest.mark.slow
def test_the_variant_trains(own_method):
    names, _ = own_method
    assert names["after"] < names["before"] - 0.05


@pytest.mark.slow
def test_the_folded_adapter_is_the_same_change(own_method):
    names, folder = own_method
    with open_adapter(folder / "folded") as file:
        for path, layer in adapters(names["gains"]).items():
            B, A = file.modules[path].factors()
            np.testing.assert_allclose(
                file.modules[path].scale * B @ A, layer.delta(), rtol=0, atol=1e-6
            )


def test_the_gpu_guides_block_runs_on_the_host(tmp_path):
    python, shown = (body for lang, body in blocks(read("gpu.md")) if lang in ("python", "text"))
    assert_prints(output_of_block(python, "gpu.md", {"__name__": "page"}), shown)


def test_the_cluster_guides_blocks_use_names_that_exist():
    code = [body for language, body in blocks(read("cluster.md")) if language == "python"]
    assert len(code) == 3
    for block in code:
        compile(block, "cluster.md", "exec")
        imported = re.search(r"from lora_np\.experiments\.rank_sweep import (.*)", block)[1]
        assert all(
            hasattr(lora_np.experiments.rank_sweep, name.strip()) for name in imported.split(",")
        )


def test_the_index_leads_to_every_guide():
    pages = {path.stem for path in GUIDES.glob("*.md")} - {"index"}
    toctree = next(body for language, body in blocks(read("index.md")))
    assert set(re.findall(r"^\w+$", toctree, re.M)) == pages
    assert set(re.findall(r"\((\w+)\.md\)", read("index.md"))) == pages


def test_the_page_on_devices_lists_every_command_that_has_none():
    (choices,) = (a.choices for a in parser()._actions if isinstance(a.choices, dict))
    without = {name for name, sub in choices.items() if "--device" not in sub.format_help()}
    page = (GUIDES / "gpu.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"- `lora-np (.*?) which do not have `--device`", page, re.S)
    listed = set(re.findall(r"([a-z-]+)`", line))
    assert listed == without - {"account", "grade"}  # these two compute nothing on arrays


def test_the_requests_that_the_guide_to_serving_shows_are_read():
    lines = [body for language, body in blocks(read("serving.md")) if language == "json"]
    calls = []
    for line in lines:
        fields = json.loads(line)
        fields.pop("custom_id", None)
        of_body = chat_of if "messages" in fields else completion_of
        calls.append(of_body(json.dumps(fields).encode()))
    assert [(call.model, call.max_tokens) for call in calls] == [("anna", 40), ("smollm2", 8)]


def test_the_fields_and_defaults_of_the_guide_to_serving_are_the_servers():
    page = read("serving.md")
    section = page.partition("### What a request may say\n")[2].partition("\n#")[0]
    rows = re.findall(r"^\| (`.*?) \| (.*?) \| (.*?) \|$", section, re.M)
    fields = {name: row for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    assert set(fields) == {*SHARED, "prompt", "messages", "max_completion_tokens"}
    call = completion_of(b'{"model": "anna", "prompt": "hi"}')
    assert fields["max_tokens"][2].startswith(f"{call.max_tokens}; in a chat {Limits().tokens},")
    assert (fields["temperature"][2], fields["top_p"][2]) == ("1", "1")
    assert (call.temperature, call.top_p) == (1.0, 1.0)
    assert fields["stop"][1] == f"up to {MOST_STOPS} strings"

    section = page.partition("## Sizes\n")[2].partition("\n#")[0]
    defaults = parser().parse_args(["serve", "--model", "m", "--adapters", "a"])
    shown = dict(re.findall(r"^\| `--([a-z]+)` \| .* \| (\d+) \|$", section, re.M))
    assert {name: str(getattr(defaults, name)) for name in ("batch", "pages", "queue")} == shown


def test_the_guide_to_serving_names_every_endpoint_and_every_metric():
    page, app = read("serving.md"), make_app(SimpleNamespace(), 8000).app
    routes = {route.path for route in app.routes}
    table = page.partition("| endpoint |")[2].partition("\n\n")[0]
    named = set(re.findall(r"`(?:GET|POST) (/\S+)`", table))
    assert {re.sub("{.*", "NAME", path) for path in routes} == named
    text = Metrics().text(Counts(*range(6)))
    names = set(re.findall(r"^# TYPE lora_np_(\w+)", text, re.M))
    listed = page.partition("## What to watch\n")[2].partition("\n#")[0]
    assert names == set(re.findall(r"`(\w+)`", listed.partition(":\n")[2]))
