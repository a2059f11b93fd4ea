"""Without SciPy, matplotlib, ml_dtypes and safetensors: all but pictures and two functions."""

import subprocess
import sys
from pathlib import Path

import pytest

EXTRAS = ("bleach", "jinja2", "nbgrader", "starlette", "tokenizers", "uvicorn")
TAKEN_AWAY = ("scipy", "matplotlib", "ml_dtypes", "safetensors", *EXTRAS)
HEAD = f"""
import sys

class TakenAway:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {TAKEN_AWAY}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name.partition(".")[0])

sys.meta_path.insert(0, TakenAway())
import numpy as np
from lora_np import *
from lora_np import cli
"""

EVERY_FILE = f"""
import importlib, pkgutil, lora_np
for module in pkgutil.walk_packages(lora_np.__path__, "lora_np."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            assert error.name in {EXTRAS}, (module.name, error.name)
for name in lora_np.__all__:
    getattr(lora_np, name)
"""

MODEL = """
rng = np.random.default_rng(0)
model = GPT(GPTConfig(64, 8, n_layer=1, n_head=2, d_model=16), rng)
adapted = inject(model, LoraConfig(r=2, target_modules="all-linear"), rng)
"""

TRAINS = """
from lora_np.data import encode, language_reference, sample_batch, standard_library
tokens = encode(standard_library()[:5000] + language_reference()[:5000]) % 64
history = fit(adapted, lambda: sample_batch(tokens, 4, 8, rng), steps=3, lr=1e-2)
assert len(history.loss) == 3
save_adapter(adapted, "adapter", dtype="float16")
back = load_adapter(model, "adapter")
assert back.generate(np.array([[1, 2]]), 3, temperature=0).shape == (1, 5)
merge(back)
"""

COMMANDS = """
save_adapter(adapted, "a")
for line in ("account", "resize a --rank 1 --out small",
             "combine a small --weights 1 1 --method cat --out sum"):
    assert cli.main(line.split()) == 0, line
assert cli.main(["analyse", "a", "--out", "report"]) == 2  # the picture alone is missing
from lora_np.files import load_json
assert load_json("report/analysis.json")["modules"]
"""

TWO_FUNCTIONS = """
from lora_np.rank import dense_svd, marchenko_pastur_median
for function, argument in ((dense_svd, np.eye(2)), (marchenko_pastur_median, 0.5)):
    try:
        function(argument)
    except ModuleNotFoundError as error:
        assert error.name == "scipy"
    else:
        raise AssertionError(function)
"""

BFLOAT16 = """
from lora_np.files import TensorFile
from lora_np.forms import Bfloat16
from lora_np.layers.stored import store_model
stored = store_model(model, Bfloat16.encode)
assert np.isfinite(stored.loss(np.array([[1, 2]]), np.array([[2, 3]]))[0])
with TensorFile(THEIRS) as file:
    assert file.read("x").tolist() == [0.10009765625, -2.0]
    try:
        file.read("x", None)
    except ValueError as error:
        assert "pip install ml_dtypes" in str(error)
    else:
        raise AssertionError
"""


def run_without(code, folder):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", HEAD + code],
        capture_output=True,
        text=True,
        cwd=folder,
        env={"PYTHONPATH": str(Path(__file__).parents[1]), "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done


def test_every_file_and_every_name_can_be_imported(tmp_path):
    run_without(EVERY_FILE, tmp_path)


def test_a_model_trains_is_saved_and_merged_on_both_corpora(tmp_path):
    run_without(MODEL + TRAINS, tmp_path)


def test_commands_work_and_a_picture_is_one_line(tmp_path):
    done = run_without(MODEL + COMMANDS, tmp_path)
    assert "lora-np: this needs matplotlib: pip install matplotlib" in done.stderr


def test_two_functions_need_scipy(tmp_path):
    run_without(TWO_FUNCTIONS, tmp_path)


def test_bfloat16_is_stored_and_read_by_its_bits(tmp_path):
    import ml_dtypes
    import numpy as np

    from lora_np.files import save_tensors

    path = tmp_path / "x.safetensors"
    save_tensors(path, {"x": np.array([0.1, -2.0]).astype(ml_dtypes.bfloat16)})
    run_without(MODEL + BFLOAT16.replace("THEIRS", repr(str(path))), tmp_path)


@pytest.mark.slow
def test_every_gradient_is_checked(tmp_path):
    run_without("assert cli.main(['gradcheck']) == 0", tmp_path)
