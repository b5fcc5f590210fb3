"""The documentation: links to files outside docs/, and lists of commands and configuration keys."""

import ast
import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from iounet.__main__ import COMMANDS
from iounet.config import get_cfg

pytest.importorskip("mkdocs", reason="needs mkdocs, which the extra 'docs' installs")
from mkdocs.config import load_config  # noqa: E402
from mkdocs.structure.files import Files  # noqa: E402

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs/hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def rewrite(hooks):
    """Rewrite Markdown as the content of a page; return it with the site paths of the copied files."""

    def rewrite(markdown: str, page: str = "guides/train.md", source: str | None = None) -> tuple[str, list[str]]:
        config = load_config(str(ROOT / "mkdocs.yml"))
        config.plugins._current_plugin = "hooks"  # as MkDocs does around a hook
        files = Files([])
        of_page = SimpleNamespace(abs_src_path=str(ROOT / (source or f"docs/{page}")), src_uri=page)
        result = hooks.on_page_markdown(markdown, SimpleNamespace(file=of_page), config, files)
        return result, [file.src_uri for file in files]

    return rewrite


def test_a_link_out_of_docs_leads_to_a_copy_on_the_site(rewrite):
    markdown, copies = rewrite("[a config](../../configs/custom.yaml#top), again [it](../../configs/custom.yaml)")
    assert (
        markdown == "[a config](../source/configs/custom.yaml.txt#top), again [it](../source/configs/custom.yaml.txt)"
    )
    assert copies == ["source/configs/custom.yaml.txt"]


def test_links_from_a_page_outside_docs_are_relative_to_that_file(rewrite):
    markdown, copies = rewrite(
        "[tests](tests/test_site.py), [pool](prroi_pool/README.md)", "contributing.md", "CONTRIBUTING.md"
    )
    assert markdown == "[tests](source/tests/test_site.py.txt), [pool](prroi_pool.md)"
    assert copies == ["source/tests/test_site.py.txt"]


@pytest.mark.parametrize(
    "link", ["[x](../../configs/no_such.yaml)", "[x](https://arxiv.org/abs/1807.11590)", "[x](#here)"]
)
def test_other_links_stay(rewrite, link):
    assert rewrite(link) == (link, [])


def test_every_command_and_script_is_listed():
    listed = (ROOT / "docs/reference/commands.md").read_text()
    scripts = [
        path.relative_to(ROOT).as_posix() for path in (ROOT / "tools").iterdir() if path.suffix in (".py", ".sh")
    ]
    assert len(scripts) > 15
    names = scripts + [f"iounet {name}" for name in COMMANDS if f"iounet-{name}" not in listed]
    assert [name for name in names if f"`{name}`" not in listed and f"`python -m {name}`" not in listed] == []


def test_the_configuration_page_lists_every_key_with_its_meaning(hooks, rewrite):
    page = (ROOT / "docs/reference/configuration.md").read_text()
    markdown, _ = rewrite(page, "reference/configuration.md")
    assert hooks.KEYS in page and hooks.KEYS not in markdown
    shown = []
    section = ""
    for line in markdown.splitlines():
        if line.startswith("## "):
            section = f"{line[3:]}."
        elif line.startswith("| `"):
            key, default, meaning = (cell.strip("` ") for cell in line.strip("|").split(" | "))
            shown.append((section + key, default))
            assert meaning, f"{section}{key} has no comment in iounet/config.py"
    assert {name: ast.literal_eval(default) for name, default in shown} == leaves(get_cfg())


def leaves(node, prefix=""):
    values = {}
    for name, value in node.items():
        values |= leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return values


def test_the_readme_stays_short_and_its_links_lead_somewhere():
    readme = (ROOT / "README.md").read_text()
    assert readme.count("\n") <= 150
    targets = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", readme)
    assert len(targets) > 15
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_the_first_example_runs_and_prints_what_is_shown(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs/get_started.md").read_text()
    code, printed = re.search(r"```python\n(from PIL.*?)```\s+```text\n(.*?)```", page, re.DOTALL).groups()
    exec(code, {})
    numbers = [
        [float(number) for number in re.findall(r"\d+\.\d+", text)] for text in (capsys.readouterr().out, printed)
    ]
    assert len(numbers[1]) == 6
    assert numbers[0] == pytest.approx(numbers[1], abs=0.05)
    for other in ("README.md", "docs/index.md"):
        assert code.rsplit("\n", 2)[0] in (ROOT / other).read_text(), other
