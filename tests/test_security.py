"""The promises of SECURITY.md: the tests that it names exist, and no code of others is trusted."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_every_promise_names_tests_that_exist() -> None:
    rows = re.findall(r"^\| (?!promise|---)(.+?) \|.*\| (.+?) \|$", (ROOT / "SECURITY.md").read_text(), re.M)
    assert len(rows) > 20
    named = {promise: re.findall(r"`(tests/\S+\.py)`", tests) for promise, tests in rows}
    assert [promise for promise, tests in named.items() if not tests] == []
    assert {test for tests in named.values() for test in tests if not (ROOT / test).is_file()} == set()


def test_remote_code_is_never_trusted() -> None:
    """Check every call that could load code along with a published model."""
    calls = [
        (path.name, node.lineno, {word.arg: ast.unparse(word.value) for word in node.keywords})
        for path in (ROOT / "motionaura_jax").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and re.match(r"Auto\w+\.from_(pretrained|config)$", ast.unparse(node.func))
    ]
    assert len(calls) >= 2
    assert [call for call in calls if call[2].get("trust_remote_code") != "False"] == []
