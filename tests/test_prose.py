"""Plain English in docstrings, comments and pages: the habits that make sentences hard to read once (CONTRIBUTING.md)."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = sorted((ROOT / "motionaura_jax").rglob("*.py"))
CODE = [*PACKAGE, *sorted((ROOT / "configs").glob("*.py")), *sorted((ROOT / "benchmarks").glob("*.py"))]
SCRIPTS = [path for path in sorted((ROOT / "launch").iterdir()) if path.is_file()]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "benchmarks").glob("*.md"))]

NOT_A_VERB = re.compile(r"(What|Where|Whether|How|That)\b")
WORN = re.compile(
    r"\b(where there (is|are) (one|some|any|none)|as it (is|reads|stands)|of which|goes? on\b(?! to)|going on\b(?! to)"
    r"|beside|to mend|mends?|mended|all the same|in one's place|thereof|stands? in\b|draw(s|n|ing)? (a |the )?videos?)\b"
    r"|\bis none\b(?!`)",
)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def docstrings(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield (line, name, text) of the docstring of a module and of every class and function in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        if documented and (text := ast.get_docstring(node)):
            yield getattr(node, "lineno", 1), getattr(node, "name", "module"), text


def comments(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of every comment."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def worn(path: Path, texts: Iterator[tuple[int, str]]) -> list[str]:
    return [f"{name_of(path)}:{line}: {found[0]!r}" for line, text in texts if (found := WORN.search(text))]


def test_docstrings_open_with_a_verb_or_a_noun() -> None:
    places = [
        f"{name_of(path)}:{line} {name}: {found[0]!r}"
        for path in PACKAGE
        for line, name, text in docstrings(path)
        if (found := NOT_A_VERB.match(text))
    ]
    assert not places, "\n".join(places)


def test_no_worn_phrase_in_docstrings() -> None:
    places = [
        place
        for path in CODE
        for place in worn(path, ((line, " ".join(text.split())) for line, _, text in docstrings(path)))
    ]
    assert not places, "\n".join(places)


def test_no_worn_phrase_in_comments() -> None:
    places = [place for path in CODE for place in worn(path, comments(path))]
    places += [
        place
        for path in SCRIPTS
        for place in worn(path, (row for row in enumerate(path.read_text().splitlines(), 1) if "#" in row[1]))
    ]
    assert not places, "\n".join(places)


def test_no_worn_phrase_in_pages() -> None:
    places = [place for path in PAGES for place in worn(path, enumerate(path.read_text().splitlines(), 1))]
    assert not places, "\n".join(places)


def test_the_phrases_themselves() -> None:
    for text in ("a cluster of one is none", "draws videos", "the file beside it", "goes on", "where there are some"):
        assert WORN.search(text), text
    for text in ("`x` is None", "the video goes on to the next stage", "stands for", "draws a sample"):
        assert not WORN.search(text), text
