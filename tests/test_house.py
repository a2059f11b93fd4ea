"""The house: which file may import which, how long a function may be, what an import costs."""

import ast
import importlib
import inspect
import subprocess
import sys

import pytest

import lora_np
from tests.source import FILES, PACKAGE, every_file, nodes, tree_of

HOUSE = (
    "backend reading patterns progress tables report forms files crew gradcheck plots parameters "
    "optim ops data rank layers methods models costs pretrained train adapters finetune chat serve "
    "experiments images selfcheck checks course cli __main__"
)
OPS = (
    "contract fastfood linear lora many activation swiglu norm modulated rope embedding attention "
    "grouped dropout loss head_loss conv recurrent __init__ fast"
)
ORDER, OPS_ORDER = HOUSE.split(), OPS.split()
NEVER_GPT = ("methods", "costs", "train", "files", "adapters", "rank")
HEAVY = (
    *("scipy", "matplotlib", "tqdm", "safetensors", "ml_dtypes"),
    *("tokenizers", "jinja2", "starlette", "uvicorn"),
)
LONGEST = 60  # lines of a function, decorators and docstring included
LONG = 400  # lines of a file
TWO_SCREENS = 180  # lines of the file of a method
CHAIN = 13  # rooms: every chain of imports is shorter
SHARED = {  # files of methods/ that are not one method's
    *("contract", "table", "file_form", "merging", "targets", "start", "reweighted"),
    *("peft", "peft_lora", "peft_dora", "stacked", "virtual", "encoder", "whole", "subspace"),
    *("paired", "peft_adalora", "options", "many", "rows"),
}
PARTICULAR = {  # files beside methods, models and pretrained that name a model or a method, and why
    "adapters/peft_config.py": "PEFT's file is LoRA's",
    "chat/conversation.py": "tokens are drawn as in generate",
    "chat/recall.py": "the memory is a language model's",
    "cli/checks.py": "account prints what LoRA costs on the sweep's GPT",
    "experiments/dylora/measure.py": "the experiment is about the method",
    "experiments/dylora/study.py": "the experiment is about the method",
    "experiments/intrinsic/__init__.py": "the experiment is about the method",
    "experiments/intrinsic/dimension.py": "the experiment is about the method",
    "experiments/grid/first_step.py": "the grid is LoRA's",
    "experiments/grid/study.py": "the grid is LoRA's",
    "experiments/intrinsic/text.py": "a default task",
    "experiments/paper/settings.py": "the paper is LoRA's",
    "experiments/precision/study.py": "QLoRA's weights, under LoRA, in a GPT",
    "experiments/rank_sweep/estimate.py": "a default task",
    "experiments/rank_sweep/linear.py": "a default task",
    "experiments/rank_sweep/llm.py": "a default task",
    "experiments/rank_sweep/method.py": "a default task",
    "experiments/rank_sweep/models.py": "a default task",
    "experiments/rank_sweep/text.py": "a default task",
    "experiments/regret/study.py": "its claims are LoRA's",
    "experiments/serving/run.py": "a default model",
    "experiments/serving/shelf.py": "the adapters that are served are LoRA's",
    "experiments/small_data/study.py": "LoRA against full fine-tuning",
    "experiments/study/run.py": "a default task",
    "experiments/study/trial.py": "a default task",
    "finetune/layout.py": "the trained top of a model",
    "selfcheck/layers.py": "the table of every pair, layer and model",
    "selfcheck/models.py": "the table of every pair, layer and model",
    "selfcheck/pairs.py": "the table of every pair, layer and model",
    "serve/batch.py": "the memory is a language model's",
    "serve/engine.py": "tokens are drawn as in generate",
    "serve/keys.py": "the memory is a language model's",
    "serve/split.py": "LoRA's two products and a language model's blocks are split",
}


def place_of(path):
    """The name of the file, or of the folder that it has become."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(tree):
    """Yield every module that is imported, wherever in the file, `from a import b` as a and a.b."""
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full: from lora_np.x import y"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(tree, within="lora_np"):
    """Return the files or folders directly in `within` that are imported."""
    depth = within.count(".") + 1
    names = [n.split(".") for n in imports(tree) if n.startswith(f"{within}.")]
    here = PACKAGE.joinpath(*within.split(".")[1:])
    return {
        n[depth] for n in names if (here / n[depth]).is_dir() or (here / f"{n[depth]}.py").exists()
    }


def misplaced(place, tree, order, within="lora_np"):
    """Return what a file at `place` of `order` imports that does not stand above it."""
    return {name for name in ours(tree, within) if order.index(name) >= order.index(place)}


# --- the order -----------------------------------------------------------------------------------


@every_file
def test_a_file_imports_only_files_above_it(path):
    place, tree = place_of(path), tree_of(path)
    if place == "__init__":
        assert ours(tree) == set()  # names load on first use
    else:
        in_a_folder = path.parent != PACKAGE  # whose files may import one another
        assert misplaced(place, tree, ORDER) <= ({place} if in_a_folder else set())


@pytest.mark.parametrize("path", sorted((PACKAGE / "ops").glob("*.py")), ids=lambda p: p.stem)
def test_a_family_of_operations_imports_only_those_above_it(path):
    assert misplaced(path.stem, tree_of(path), OPS_ORDER, "lora_np.ops") == set()


@pytest.mark.parametrize("path", sorted((PACKAGE / "ops/fast").glob("*.py")), ids=lambda p: p.stem)
def test_a_fast_twin_imports_textbook_families_and_no_other_twin(path):
    tree, twins = tree_of(path), ours(tree_of(path), "lora_np.ops.fast")
    assert misplaced("fast", tree, OPS_ORDER, "lora_np.ops") <= {"fast"}
    shared = {"attention": {"grouped"}, "many": {"linear"}}  # a group of one; the large product
    assert path.stem == "__init__" or twins == shared.get(path.stem, set())
    assert (PACKAGE / "ops" / path.name).exists()  # each in the file of its textbook form's name


@pytest.mark.parametrize("name", NEVER_GPT)
def test_what_works_on_any_model_does_not_know_gpt(name):
    files = [path for path in FILES if place_of(path) == name]
    assert files
    assert not any("gpt" in module.lower() for path in files for module in imports(tree_of(path)))


@pytest.mark.parametrize(
    "source, found",
    [
        ("from lora_np.backend import Array\nimport numpy", set()),
        ("import lora_np.models", {"models"}),
        ("from lora_np import train", {"train"}),
        ("def f():\n    from lora_np.methods import inject", {"methods"}),
        ("if TYPE_CHECKING:\n    from lora_np.layers import Layer", {"layers"}),
    ],
)
def test_the_check_of_the_order_finds_imports_wherever_they_are(source, found):
    assert misplaced("layers", ast.parse(source), ORDER) == found


# --- how far things reach ------------------------------------------------------------------------


def rooms():
    """Return by room which rooms its files import, wherever in the file."""
    found = {place: set() for place in ORDER}
    for path in FILES:
        if (place := place_of(path)) != "__init__":
            found[place] |= ours(tree_of(path)) - {place}
    return found


def longest_chain(imported):
    """Return the longest chain from a room to one that imports nothing, itself included."""
    chains = {}
    for place in ORDER:  # what it imports stands before it
        below = [chains[name] for name in imported[place] if name in chains]
        chains[place] = [place, *max(below, key=len, default=[])]
    return max(chains.values(), key=len)


def test_every_chain_of_imports_is_short():
    chain = longest_chain(rooms())
    print(len(chain), " > ".join(chain))
    assert chain[-1] in ("backend", "tables") and 3 < len(chain) < CHAIN


def test_the_longest_chain_is_found():
    imported = {place: set() for place in ORDER}
    imported |= {"cli": {"train", "ops"}, "train": {"layers"}, "layers": {"ops"}}
    assert longest_chain(imported) == ["cli", "train", "layers", "ops"]


def particular(tree):
    """Return the imports of a module of models/ or of one method, and of names that are theirs."""

    def home(name):
        """Return the module that defines it, where a room's front only hands it on."""
        parent, _, last = name.rpartition(".")
        if parent not in ("lora_np", "lora_np.methods"):
            return name
        found = getattr(importlib.import_module(parent), last, None)
        return name if inspect.ismodule(found) else getattr(found, "__module__", parent)

    def is_particular(module):
        _, room, file, *_ = [*module.split("."), "", ""]
        return room == "models" or (room == "methods" and file not in ("", *SHARED))

    return {name for name in imports(tree) if is_particular(home(name))}


@every_file
def test_a_model_and_a_method_are_named_only_where_it_is_said_why(path):
    name = str(path.relative_to(PACKAGE))
    if place_of(path) not in ("methods", "models", "pretrained", "__init__"):
        assert bool(particular(tree_of(path))) == (name in PARTICULAR)


@pytest.mark.parametrize(
    "source, found",
    [
        ("from lora_np.methods import inject, METHODS, MethodConfig, merge", set()),
        ("from lora_np.methods.contract import adapters\nfrom lora_np import fit", set()),
        ("from lora_np.methods import inject, LoraConfig", {"lora_np.methods.LoraConfig"}),
        ("def f():\n    import lora_np.methods.lora", {"lora_np.methods.lora"}),
        ("from lora_np import GPT", {"lora_np.GPT"}),
        ("from lora_np import models", {"lora_np.models"}),
    ],
)
def test_the_check_of_particulars_finds_modules_and_names(source, found):
    assert particular(ast.parse(source)) == found


# --- the text ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((PACKAGE / "methods").glob("*.py")), ids=lambda p: p.stem)
def test_a_method_fits_on_two_screens(path):
    if path.stem not in {"__init__", *SHARED}:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= TWO_SCREENS


def functions(tree):
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return [node for node in nodes(tree) if isinstance(node, kinds)]


def first_line(node):
    return min([node.lineno, *(d.lineno for d in node.decorator_list)])


@every_file
def test_no_function_is_longer_than_sixty_lines(path):
    lengths = [(f.end_lineno - first_line(f) + 1, f.name) for f in functions(tree_of(path))]
    assert [(n, name) for n, name in lengths if n > LONGEST] == []


@every_file
def test_no_file_is_longer_than_four_hundred_lines(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LONG


def public(body):
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return [node for node in body if isinstance(node, kinds) and not node.name.startswith("_")]


def without_docstring(tree):
    """Return the public functions, classes and methods that say nothing."""
    named = {node.name: node for node in public(tree.body)}
    for name, node in list(named.items()):
        if isinstance(node, ast.ClassDef):
            named.update({f"{name}.{method.name}": method for method in public(node.body)})
    return [name for name, node in named.items() if not ast.get_docstring(node)]


@every_file
def test_everything_public_has_a_docstring(path):
    tree = tree_of(path)
    assert ast.get_docstring(tree), "the file itself has none"
    assert without_docstring(tree) == []


def test_the_check_of_docstrings_finds_functions_classes_and_methods():
    source = 'def f(): pass\nclass C:\n    "C"\n    def m(self): pass\n    def _n(self): pass'
    assert without_docstring(ast.parse(source)) == ["f", "C.m"]


def is_literal(node):
    """Whether an expression is made of numbers and np.pi alone."""
    parts = ast.Constant | ast.BinOp | ast.UnaryOp | ast.operator | ast.unaryop | ast.expr_context
    constants = [
        n for n in ast.walk(node) if isinstance(n, ast.Attribute) and n.attr in ("pi", "e")
    ]
    allowed = {id(part) for constant in constants for part in ast.walk(constant)}
    return all(isinstance(n, parts) or id(n) in allowed for n in ast.walk(node))


def float64_scalars(tree):
    """Return calls such as np.sqrt(2.0): an np.float64, which lifts float32 arrays to float64."""
    calls = [n for n in nodes(tree) if isinstance(n, ast.Call) and n.args]
    return [
        ast.unparse(call)
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and ast.unparse(call.func.value) in ("np", "xp", "numpy")
        and call.func.attr in ("sqrt", "log", "exp", "tanh", "float64", "power")
        and all(is_literal(arg) for arg in call.args)
    ]


@every_file
def test_no_float64_scalar_is_made_from_a_literal(path):
    assert float64_scalars(tree_of(path)) == []


def test_the_check_of_float64_scalars_finds_literals_and_leaves_arrays():
    source = "np.sqrt(2.0 / np.pi); np.exp(-1); xp.log(2); math.sqrt(2); np.exp(x); np.sqrt(d / 2)"
    assert float64_scalars(ast.parse(source)) == [
        "np.sqrt(2.0 / np.pi)",
        "np.exp(-1)",
        "xp.log(2)",
    ]


@every_file
def test_randomness_comes_from_a_generator(path):
    used = {
        node.attr
        for node in nodes(tree_of(path))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("np.random", "random")
    }
    assert used <= {"Generator", "default_rng", "SeedSequence"}


# --- what an import costs, and what it offers ----------------------------------------------------

HOMES = {place_of(path) for path in FILES}
NAMES = [name for name, home in lora_np._MODULE_OF.items() if home in HOMES]


def loaded_after(code):
    """Run `code` in a fresh interpreter; return the modules that it loaded."""
    script = f"{code}\nimport sys\nprint(*sys.modules)"
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=PACKAGE.parent, timeout=120
    )
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_else():
    loaded = loaded_after("import lora_np")
    assert {name for name in loaded if name.startswith("lora_np.")} == set()
    assert not loaded & {*HEAVY, "numpy"}


def test_importing_every_core_name_loads_nothing_heavy():
    loaded = loaded_after(f"from lora_np import {', '.join(NAMES)}")
    assert {"lora_np.models", "lora_np.methods", "lora_np.train", "numpy"} <= loaded
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_the_package_is_where_it_says(name):
    home = importlib.import_module(f"lora_np.{lora_np._MODULE_OF[name]}")
    found = getattr(lora_np, name)
    assert found is getattr(home, name) and found.__module__.startswith(home.__name__)


def test_the_package_lists_its_names_and_refuses_others():
    assert set(lora_np.__all__) == {"__version__", *lora_np._MODULE_OF} <= set(dir(lora_np))
    assert len(set(lora_np.__all__)) == len(lora_np.__all__)
    assert lora_np.ops.linear_forward and lora_np.backend.get_xp  # modules too
    with pytest.raises(AttributeError, match="has no attribute 'magic'"):
        lora_np.magic  # noqa: B018


@pytest.mark.parametrize(
    "module, name, home",
    [
        ("adapt", "inject", "methods"),
        ("analyse", "analyse_sweep", "experiments.rank_sweep.analyse"),
        ("analyse", "Analysis", "adapters.ranks"),
        ("course.attention", "ATTENTION", "course.misconceptions.attention"),
        ("course.attention", "ENTROPY", "course.misconceptions.cross_entropy"),
        ("course.attention", "LAYERNORM", "course.misconceptions.layernorm"),
        ("course.attention", "SOFTMAX", "course.misconceptions.softmax"),
        ("course.child", "attempt", "course.sandbox.child"),
        ("course.compare", "checker", "course.notebook"),
        ("course.compare", "judge", "course.judge"),
        ("course.compare", "same", "course.comparison"),
        ("course.compare", "spell_draw", "course.task"),
        ("course.compare", "spell_powers", "course.factor"),
        ("course.compare", "task_called", "course.task"),
        ("course.compare", "Report", "course.report"),
        ("course.linear", "BACKWARD", "course.misconceptions.lora_backward"),
        ("course.linear", "FORWARD", "course.misconceptions.lora_forward"),
        ("course.linear", "LINEAR", "course.misconceptions.linear"),
        ("course.linear", "NUMERIC", "course.misconceptions.numeric_gradient"),
        ("course.linear", "WRONG_SCALES", "course.misconceptions.lora"),
        ("course.rank", "STABLE", "course.misconceptions.rank"),
        ("course.runner", "Limits", "course.sandbox.runner"),
        ("course.untrusted", "read_answers", "course.sandbox.untrusted"),
        ("diagnose", "checker", "course"),
        ("diagnose.compare", "judge", "course.judge"),
        ("diagnose.grade", "grade_folder", "course.grade"),
        ("diagnose.runner", "run_isolated", "course.sandbox.runner"),
        ("diagnose.task", "TASKS", "course.task"),
        ("sweep", "rank_sweep", "experiments.rank_sweep"),
        ("plots", "plot_intrinsic", "experiments.intrinsic.picture"),
        ("plots", "plot_rank_map", "adapters.picture"),
        ("plots", "plot_rank_vs_loss", "experiments.rank_sweep.picture"),
        ("plots", "plot_recovery", "rank.picture"),
        ("plots", "plot_similarity", "experiments.paper.picture"),
        ("plots", "plot_spectrum", "experiments.rank_sweep.picture"),
    ],
)
def test_a_name_that_has_moved_is_found_where_it_was(module, name, home):
    here = importlib.import_module(f"lora_np.{module}")
    assert getattr(here, name) is getattr(importlib.import_module(f"lora_np.{home}"), name)
    with pytest.raises(AttributeError, match=f"'lora_np.{module}' has no attribute 'magic'"):
        here.magic  # noqa: B018


def test_colours_load_no_picture_and_no_matplotlib():
    loaded = loaded_after("from lora_np.plots import BLUE, GREEN")
    assert {n for n in loaded if n.startswith("lora_np.")} == {"lora_np.plots"}
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize("name", importlib.import_module("lora_np.ops").__all__)
def test_every_operation_has_both_halves(name):
    ops = lora_np.ops
    pair, _, half = name.rpartition("_")
    assert callable(getattr(ops, name))
    if half in ("forward", "backward"):
        assert callable(getattr(ops, f"{pair}_forward")) and f"{pair}_backward" in ops.__all__
