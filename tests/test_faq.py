"""Each message that docs/faq.md quotes occurs in the source."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "faq.md").read_text()
# A heading that consists only of code quotes a message, where "..." stands for inserted values.
QUOTED = re.findall(r"^### `(.*)`$", PAGE, re.MULTILINE)
FILLED_IN = "\0"


def text_of(node):
    """The text of a string expression, with FILLED_IN for inserted values."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text_of, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left) + text_of(node.right)
    return FILLED_IN


@pytest.fixture(scope="module")
def texts():
    files = [path for folder in ("iounet", "prroi_pool") for path in (ROOT / folder).rglob("*.py")]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text()))]
    return {text_of(node) for node in nodes if isinstance(node, (ast.Constant, ast.JoinedStr, ast.BinOp))}


@pytest.mark.parametrize("message", QUOTED)
def test_a_quoted_message_is_in_the_source(message, texts):
    pattern = re.compile(".*".join(re.escape(part) for part in message.split("...")), re.DOTALL)
    assert any(pattern.search(text) for text in texts), f"docs/faq.md quotes a message that nothing prints: {message}"


def test_many_messages_are_quoted_each_once():
    assert len(QUOTED) > 30 and len(set(QUOTED)) == len(QUOTED)


def test_a_quote_needs_its_parts_in_one_message(texts):
    assert not any(re.search("No C.. compiler.*batch index", text, re.DOTALL) for text in texts)
