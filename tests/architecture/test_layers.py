"""The rules of the architecture: layers, third-party imports, cycles, adapters, sizes, names, lazy imports.

Style and complexity (at most 15 per function) are ruff's; see `pyproject.toml`.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Dict, Iterator, List, Set, Tuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "edge_agent"

LAYERS = {
    "errors": set(),
    "files": set(),
    "core": {"errors", "core"},
    "capture": {"errors", "files", "core", "capture"},
    "models": {"errors", "files", "core", "models"},
    "inference": {"errors", "files", "core", "models", "inference"},
    "outbox": {"errors", "core", "outbox"},
    "mqtt": {"errors", "core", "mqtt"},
    "host": {"errors", "core", "host"},
    "runtime": {"errors", "core", "runtime"},
}
LAYERS["config"] = set(LAYERS) | {"config"}
LAYERS["app"] = set(LAYERS) | {"app"}
LAYERS["commands"] = set(LAYERS) | {"commands"}
LAYERS["cli"] = set(LAYERS) | {"cli"}
LAYERS["__init__"] = set()
LAYERS["__main__"] = {"cli"}
THIRD_PARTY = {
    "numpy": ("core/", "capture/", "models/", "inference/", "host/jpeg.py", "commands/"),
    "cv2": ("capture/", "inference/preprocess.py", "host/jpeg.py", "commands/"),
    "simplejpeg": ("capture/", "host/jpeg.py"),
    "av": ("capture/media",),
    "onnx": ("models/onnx/",),
    "google": ("models/onnx/",),
    "onnxruntime": ("inference/ort.py", "models/inspect.py"),
    "paho": ("mqtt/",),
    "pydantic": ("config/settings.py",),
    "pydantic_settings": ("config/settings.py",),
    "iotcore": ("commands/",),
    "jetson_utils_python": ("capture/jetson/module.py",),
    "pycuda": ("inference/cuda/driver.py",),
    "tensorrt": ("inference/trt/",),
    "systemd": ("host/journal.py",),
    "prometheus_client": ("host/metrics.py",),
}
CORE_STDLIB = {
    "abc",
    "bisect",
    "collections",
    "copy",
    "dataclasses",
    "datetime",
    "enum",
    "functools",
    "hashlib",
    "heapq",
    "itertools",
    "json",
    "math",
    "operator",
    "re",
    "string",
    "struct",
    "types",
    "typing",
    "unicodedata",
    "zlib",
}
ADAPTERS = ("capture", "inference", "outbox", "mqtt", "host")
BUILDERS = ("commands", "config", "cli")
"""Layers that may import adapters' packages but construct none; `app` is the only one that does."""
EXEMPT = {
    # Handlers are installed before the slow imports of `app`.
    ("commands/run.py", "edge_agent.host.process.Signals"),
}
MAX_LINES = 600
MAX_PARAMETERS = 8
ODD_NAMES = {
    *("desk", "letters", "truth", "pace", "notes", "turns", "place", "stand_in", "notices"),
    *("utils", "helpers", "common", "misc"),
}
HEAVY = (
    "onnx",
    "google",
    "cv2",
    "onnxruntime",
    "av",
    "paho",
    "pydantic",
    "tensorrt",
    "pycuda",
    "jetson_utils_python",
    "iotcore",
    "prometheus_client",
)


def modules() -> List[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(path: Path) -> Iterator[Tuple[str, int]]:
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            base = PACKAGE.parent.joinpath(*node.module.split("."))
            for alias in node.names:
                inner = base / f"{alias.name}.py"
                yield (f"{node.module}.{alias.name}" if inner.exists() else node.module), node.lineno
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield "." * node.level, node.lineno


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_imports_run_one_way(path: Path) -> None:
    here = layer(dotted(path))
    assert here in LAYERS, f"{path.name}: no layer of that name in the design; name where it belongs"
    for name, line in imports(path):
        assert not name.startswith("."), f"{path}:{line}: relative import"
        if name == "edge_agent":
            continue
        if name.startswith("edge_agent."):
            there = layer(name)
            assert there in LAYERS[here], f"{path}:{line}: {here} must not import {there}"


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_third_party_imports_are_where_they_belong(path: Path) -> None:
    where = path.relative_to(PACKAGE).as_posix()
    for name, line in imports(path):
        top = name.split(".")[0]
        if top in THIRD_PARTY:
            assert where.startswith(THIRD_PARTY[top]), f"{where}:{line}: {top} is not allowed here"
        if where.startswith("core/") and top not in ("edge_agent", "numpy"):
            assert top in CORE_STDLIB, f"{where}:{line}: core is pure; it may not import {top}"


def test_there_are_no_cycles() -> None:
    known = {dotted(path) for path in modules()}
    edges: Dict[str, Set[str]] = {
        dotted(path): {name for name, _ in imports(path) if name in known and name != dotted(path)}
        for path in modules()
    }
    done: Set[str] = set()

    def visit(name: str, trail: Tuple[str, ...]) -> None:
        assert name not in trail, "cycle: " + " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for other in edges[name]:
                visit(other, (*trail, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def test_modules_stay_small() -> None:
    sizes = {dotted(path): len(path.read_text("utf-8").splitlines()) for path in modules()}
    too_long = {name: size for name, size in sizes.items() if size > MAX_LINES}
    assert not too_long, f"over {MAX_LINES} lines: {too_long}"
    bad = [name for name in sizes if ODD_NAMES & set(name.split("."))]
    assert not bad, f"vague or private names: {bad}"


def test_only_app_constructs_adapters() -> None:
    """No module of `commands`, `config` or `cli` imports what constructs an adapter; they call `app.factories`.

    An adapter is a class of capture, inference, outbox, mqtt or host that is not plain data: no dataclass, enum,
    NamedTuple, exception or Protocol. What constructs one is the class itself, a function whose return annotation
    names a port of `core.ports`, and a function called `open_*`. Everything else of these packages is parameters and
    functions on data, and may be imported; so may anything under TYPE_CHECKING, for annotations. The other layers
    cannot import another layer's adapters at all.
    """
    builders = _constructors()
    found = set()
    for path in modules():
        where = path.relative_to(PACKAGE).as_posix()
        if layer(dotted(path)) in BUILDERS:
            found |= {(where, name) for name in _used_names(ast.parse(path.read_text("utf-8"))) if name in builders}
    assert found == EXEMPT, f"constructed outside app: {sorted(found ^ EXEMPT)}; use edge_agent.app.factories"


def _constructors() -> Set[str]:
    """Dotted names of all adapters, and of the functions that construct one."""
    trees = {dotted(path): ast.parse(path.read_text("utf-8")) for path in modules() if layer(dotted(path)) in ADAPTERS}
    ports = set(re.findall(r"^(?:class )?([A-Z]\w+)[( ]", (PACKAGE / "core/ports.py").read_text("utf-8"), re.MULTILINE))
    found = set()
    for module, tree in trees.items():
        classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        found |= {f"{module}.{name}" for name, node in classes.items() if not _is_data(node, classes)}
        for node in tree.body:
            if isinstance(node, ast.FunctionDef):
                returned = re.findall(r"\w+", ast.dump(node.returns)) if node.returns else []
                if node.name.startswith("open_") or ports & set(returned):
                    found.add(f"{module}.{node.name}")
    return found


def _is_data(node: ast.ClassDef, classes: Dict[str, ast.ClassDef]) -> bool:
    if any("dataclass" in ast.dump(decorator) for decorator in node.decorator_list):
        return True
    bases = {name.id for base in node.bases for name in ast.walk(base) if isinstance(name, ast.Name)}
    if bases & {"NamedTuple", "Enum", "IntEnum", "Protocol"} or any(base.endswith("Error") for base in bases):
        return True
    return any(_is_data(classes[base], classes) for base in bases if base in classes)


def _used_names(tree: ast.Module) -> Iterator[str]:
    """Dotted names that a module imports, or takes as attributes of a module that it imports; not for annotations."""
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    aliases: Dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in guarded:
            for alias in node.names:
                aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            assert not any(alias.name.startswith("edge_agent") for alias in node.names), "import names with 'from'"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            yield f"{aliases[node.value.id]}.{node.attr}"


def test_constructors_take_at_most_eight_parameters() -> None:
    """Hand-written `__init__` methods, without self; and the fields of dataclasses that are not frozen.

    A frozen dataclass is plain data or parameters, which one may have many of; so is a NamedTuple.
    """
    found = set()
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef) and _constructor_parameters(node) > MAX_PARAMETERS:
                found.add(f"{dotted(path)}.{node.name}")
    assert not found, f"over {MAX_PARAMETERS} constructor parameters: {sorted(found)}"


def _constructor_parameters(node: ast.ClassDef) -> int:
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and method.name == "__init__":
            arguments = method.args
            return len(arguments.posonlyargs + arguments.args + arguments.kwonlyargs) - 1
    decorators = [ast.dump(decorator) for decorator in node.decorator_list]
    if any("dataclass" in text and "frozen" not in text for text in decorators):
        return sum(isinstance(field, ast.AnnAssign) for field in node.body)
    return 0


def test_the_top_level_is_as_the_user_fixed_it() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout: run the tests from a clone to check the top level")
    allowed = {
        "edge_agent",
        "systemd",
        "config",
        "tests",
        "scripts",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
    }
    found = {name.split("/")[0] for name in listed.stdout.splitlines()}
    assert {name for name in found if not name.startswith(".")} <= allowed


def test_the_command_line_loads_nothing_heavy() -> None:
    """In a fresh interpreter: neither importing the CLI nor building its parser loads a heavy package."""
    code = f"import sys, edge_agent.cli as cli; cli.parser(); print([m for m in {HEAVY!r} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_broad_excepts_are_the_two_allowed_ones() -> None:
    found = []
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ExceptHandler):
                names = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)} if node.type else {"Exception"}
                if names & {"Exception", "BaseException"}:
                    found.append(path.relative_to(PACKAGE).as_posix())
    assert len(found) <= 2 and set(found) <= {"runtime/worker.py", "mqtt/client.py"}, found
