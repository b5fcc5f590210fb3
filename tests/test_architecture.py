"""Rules of the code base: which module imports which, who reads the configuration, and no code execution from files."""

import ast
import sys
from pathlib import Path

import pytest

import iounet.postprocess

ROOT = Path(__file__).parents[1]

# Groups of modules in iounet, and the groups that each may import. There are no cycles.
MAY_IMPORT = {
    "errors": set(),
    "boxes": set(),
    "categories": set(),
    "progress": set(),
    "terminal": set(),
    "wording": set(),
    "stops": set(),
    "checks": {"categories"},
    "detections": {"checks"},
    "files": {"errors"},
    "nms_options": {"errors"},
    "ranges": {"errors"},
    "devices": {"errors"},
    "config": {"errors", "ranges"},
    "data": {"categories", "errors", "files", "progress", "terminal", "wording"},
    "visualization": set(),
    "html_report": {"files"},
    "arrays": {"checks", "stops"},
    "numpy_nms": {"nms_options"},
    "onnx": {"arrays", "checks", "errors", "nms_options", "numpy_nms", "wording"},
    "postprocess": {"boxes", "detections", "errors", "nms_options", "stops"},
    "modeling": {"boxes", "checks", "detections", "errors", "postprocess"},
    "training": {"boxes", "categories", "errors", "files", "modeling"},
    "evaluation": {"boxes", "data", "detections", "files", "html_report", "modeling", "postprocess", "visualization"},
    "jobs": {"data", "modeling"},
    "build": {"config", "data", "devices", "errors", "jobs", "modeling", "postprocess", "training", "wording"},
    "engine": {
        *("config", "data", "errors", "evaluation", "files", "jobs", "modeling", "progress", "training"),
        *("visualization", "wording"),
    },
    "refiner": {
        *("boxes", "build", "categories", "checks", "config", "data", "detections", "devices", "errors", "evaluation"),
        *("files", "html_report", "modeling", "nms_options", "postprocess", "progress", "stops", "training"),
        *("visualization", "wording"),
    },
    "tightening": {
        *("boxes", "build", "categories", "data", "detections", "devices", "engine", "errors", "evaluation", "files"),
        *("jobs", "modeling", "progress", "refiner", "training", "visualization", "wording"),
    },
    "export": {"boxes", "files", "detections", "errors", "modeling", "onnx", "postprocess", "refiner"},
    "demo": {"data", "errors", "refiner"},
    "commands": {
        *("build", "config", "data", "demo", "engine", "errors", "jobs", "refiner", "terminal", "tightening"),
    },
    "__init__": {"build", "config", "detections", "refiner"},
    "__main__": set(),
}
MAY_IMPORT_PRROI_POOL = {"modeling", "build", "export"}
MAY_HOLD_A_CONFIGURATION = {"config", "build", "commands"}
MAY_READ_ITS_KEYS = {"config", "build"}

FOLDERS = ("iounet", "prroi_pool", "tools", "benchmarks", "examples")
MODULES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
OURS = [path for path in MODULES if path.is_relative_to(ROOT / "iounet")]
PRROI_POOL = [path for path in MODULES if path.is_relative_to(ROOT / "prroi_pool")]


def name_of(path):
    return str(path.relative_to(ROOT))


def group_of(path):
    """Group of a file: boxes for iounet/boxes.py, modeling for iounet/modeling/detector.py."""
    return path.relative_to(ROOT / "iounet").with_suffix("").parts[0]


def imports_of(path):
    """Yield (module, name) for every import in the file, as absolute imports; name is None for `import x`."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*above, *(node.module.split(".") if node.module else [])])
            yield from ((module, alias.name) for alias in node.names)


def groups_imported_by(path):
    for module, name in imports_of(path):
        parts = module.split(".")
        if parts[0] == "iounet":
            # The last name is a group in `from . import boxes`, but a public name in `from iounet import IoURefiner`.
            yield parts[1] if len(parts) > 1 else name if name in MAY_IMPORT else "__init__"


def test_every_group_has_a_rule():
    assert {group_of(path) for path in OURS} == set(MAY_IMPORT)
    assert len(OURS) > 20 and len(PRROI_POOL) > 4


def test_the_rules_have_no_cycle():
    order, left = [], dict(MAY_IMPORT)
    while left:
        free = [group for group, imported in left.items() if imported <= set(order)]
        assert free, f"a cycle among {sorted(left)}"
        order += free
        for group in free:
            del left[group]


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_a_group_imports_only_allowed_groups(path):
    group = group_of(path)
    assert set(groups_imported_by(path)) - {group} - MAY_IMPORT[group] == set()


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_only_some_groups_import_prroi_pool(path):
    pools = any(module.split(".")[0] == "prroi_pool" for module, _ in imports_of(path))
    assert not pools or group_of(path) in MAY_IMPORT_PRROI_POOL


@pytest.mark.parametrize("path", PRROI_POOL, ids=name_of)
def test_prroi_pool_can_be_copied_alone(path):
    tops = {module.split(".")[0] for module, _ in imports_of(path)}
    # prroi_pool.onnx is imported only for exporting, and torch.onnx.export needs onnxscript anyway.
    own = {"onnxscript"} if path.name == "onnx.py" else set()
    assert tops <= {"prroi_pool", "torch"} | own | sys.stdlib_module_names
    absolute = [
        node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom) and not node.level
    ]
    assert [node.module for node in absolute if node.module.startswith("prroi_pool")] == [], "use relative imports"


@pytest.mark.parametrize("path", [path for path in OURS if group_of(path) == "modeling"], ids=name_of)
def test_modeling_sees_only_the_public_names_of_postprocess(path):
    used = {(module, name) for module, name in imports_of(path) if module.startswith("iounet.postprocess")}
    assert {module for module, _ in used} <= {"iounet.postprocess"}
    assert {name for _, name in used} <= set(iounet.postprocess.__all__)


@pytest.mark.parametrize("path", [path for path in OURS if group_of(path) not in MAY_HOLD_A_CONFIGURATION], ids=name_of)
def test_the_configuration_stops_at_build(path):
    assert [module for module, _ in imports_of(path) if module.split(".")[0] == "yacs"] == []
    identifiers = set()
    for node in ast.walk(ast.parse(path.read_text())):
        identifiers |= {node.id} if isinstance(node, ast.Name) else set()
        identifiers |= {node.arg} if isinstance(node, ast.arg) else set()
        identifiers |= {node.attr} if isinstance(node, ast.Attribute) else set()
    assert identifiers & {"cfg", "_cfg", "CfgNode"} == set()


def keys_read_in(path):
    """Yield the key of every expression that reads a value of `cfg`, such as `cfg.SOLVER.BASE_LR`."""
    tree = ast.parse(path.read_text())
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and id(node) not in inner:
            root, *keys = ast.unparse(node).split(".")
            if root == "cfg" and keys[0].isupper():
                yield ".".join(keys)


def test_keys_read_in_finds_keys(tmp_path):
    (tmp_path / "a.py").write_text("cfg.A.B = 1\ncfg.dump()\nx = cfg.C.D + f(cfg.E)[cfg.G.H.lower()]\n")
    assert sorted(keys_read_in(tmp_path / "a.py")) == ["C.D", "E", "G.H.lower"]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_keys_are_read_only_in_two_files(path):
    if path.is_relative_to(ROOT / "iounet") and group_of(path) in MAY_READ_ITS_KEYS:
        return
    assert list(keys_read_in(path)) == []


@pytest.mark.parametrize("path", sorted((ROOT / "tools").glob("*.py")), ids=name_of)
def test_a_tool_parses_builds_and_calls(path):
    assert len(path.read_text().splitlines()) <= 130
    imported = {module.split(".")[0] for module, _ in imports_of(path)}
    assert not imported & {"tools", *(tool.stem for tool in (ROOT / "tools").glob("*.py"))}, "no tool imports a tool"


@pytest.mark.parametrize("path", [*MODULES, *sorted((ROOT / "tests").rglob("*.py"))], ids=name_of)
def test_files_stay_short(path):
    assert len(path.read_text().splitlines()) <= 420


def test_test_files_have_unique_names():
    """tests/ has no packages, so pytest and shared imports identify a file by its name alone."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_catch_all_modules(path):
    assert not {"utils", "util", "misc", "helpers", "common"} & set(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_files_are_read_without_running_code(path):
    # Such functions must be called by their full names, so that the checks below see them.
    assert not {
        name for module, name in imports_of(path) if module in ("pickle", "torch", "yaml") and "load" in str(name)
    }
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        assert called not in ("eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load"), called
        assert not called.endswith(("merge_from_file", "load_cfg")), "yacs would execute a .py file"
        if called == "torch.load":
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert keywords.get("weights_only") == "True"
