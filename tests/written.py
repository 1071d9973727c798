"""Checks of what written folders must not contain."""

import json


def local_paths(folder):
    """Return the absolute paths found in the JSON files of a folder, with their files."""
    texts = [(path.relative_to(folder), json.loads(path.read_text())) for path in folder.rglob("*.json")]
    assert texts
    return [(path, text) for path, value in texts for text in _strings(value) if text.startswith("/") and len(text) > 1]


def _strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _strings(one)
