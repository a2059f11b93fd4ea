"""What the package says of itself: pyproject.toml, CITATION.cff and the messages agree."""

import ast
import re
import tomllib
from pathlib import Path

import lora_np

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CITATION = (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def cited(field):
    """Return a field of CITATION.cff that is one line, or one list; None if it is not there."""
    if found := re.search(rf"^{field}: \"?(.+?)\"?$", CITATION, re.M):
        return found[1]
    if found := re.search(rf"^{field}:\n((?:  - .+\n)+)", CITATION, re.M):
        return re.findall(r"^  - (?:name: )?(.+)$", found[1], re.M)
    return None


def test_the_version_is_one():
    assert lora_np.__version__ == PROJECT["version"] == cited("version")


def test_the_citation_says_what_the_package_says():
    assert cited("cff-version") == "1.2.0"
    assert cited("title") == PROJECT["name"]
    assert cited("abstract") == PROJECT["description"]
    assert cited("license") == PROJECT["license"]
    assert cited("keywords") == PROJECT["keywords"]
    assert cited("authors") == [author["name"] for author in PROJECT["authors"]]


def test_the_citation_has_the_projects_address_if_there_is_one():
    assert cited("repository-code") == PROJECT.get("urls", {}).get("repository")


def test_the_versions_of_python_are_those_that_it_requires():
    named = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if "Python :: 3." in c]
    minors = [int(version.removeprefix("3.")) for version in named]
    assert PROJECT["requires-python"] == f">={named[0]}"
    assert minors == list(range(minors[0], minors[-1] + 1)) and len(minors) >= 3


def test_the_package_says_that_it_has_types():
    assert "Typing :: Typed" in PROJECT["classifiers"]
    assert (ROOT / "lora_np" / "py.typed").exists()


def test_type_checkers_and_editors_know_every_name_of_the_package():
    stub = ast.parse((ROOT / "lora_np" / "__init__.pyi").read_text(encoding="utf-8"))
    lines = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    named = {(n.module, name.name) for n in lines for name in n.names if n.module != "typing"}
    homes = {(f"lora_np.{home}", name) for name, home in lora_np._MODULE_OF.items()}
    assert named == homes | {("lora_np", name) for name in lora_np._MODULES}
    assert all(name.asname == name.name for n in lines[1:] for name in n.names)  # to be exported


def test_every_extra_that_a_message_names_exists_and_is_installed_from_anywhere():
    sources = [p.read_text(encoding="utf-8") for p in (ROOT / "lora_np").rglob("*.py")]
    named = {name for source in sources for name in re.findall(r"lora_np\[(\w+)\]'", source)}
    assert {"serve", "llm", "gpu"} <= named <= set(PROJECT["optional-dependencies"])
    assert not [line for source in sources for line in re.findall(r"install '\.\[.*", source)]
