#!/usr/bin/env python3
"""Concept descriptions: what the classes of a data set look like, whatever stands behind them. This file reads them.

A description file is JSON in UTF-8: {"about": {...}, "classes": {key: {"name": "...", "descriptions": ["...", ...]}}}.
"""
import json
import sys
from collections import Counter
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent


class BadInput(ValueError):
    """A fault of the input, in one line that names the thing, its value and what is allowed (exit code 2)."""


def log(text):
    """A line for the reader, on standard error: standard output is for results."""
    tqdm.write(text, file=sys.stderr)


def find(path):
    """A relative path is looked for here first, then beside this file, so that the shipped files are always found."""
    path = Path(path)
    return path if path.exists() or path.is_absolute() else ROOT / path


def load_descriptions(path, classes):
    """Description file -> one list of texts per class, in the order of `classes` (key -> name). Raises BadInput.

    Matched by key, never by position: a key is a class's key or its name. Shapes: {"classes": {key: {"descriptions":
    [text, ...]}}}, and those of the authors' release, {key: text} and {key: [text, ...]}.
    """
    return load_names_and_descriptions(path, classes)[1]


def load_names_and_descriptions(path, classes):
    """As load_descriptions, and before it the classes with the names that the file gives them: (key -> name, texts)."""
    def refuse(what):
        raise BadInput(f"--descriptions {path}: {what}")

    def unique(pairs):  # a JSON object with a key twice would silently keep the last
        repeated = [key for key, times in Counter(key for key, _ in pairs).items() if times > 1]
        if repeated:
            refuse(f"{', '.join(map(repr, repeated))} repeated; each class comes once")
        return dict(pairs)

    try:
        content = json.loads(find(path).read_text(encoding="utf-8"), object_pairs_hook=unique)
    except OSError as e:
        refuse(f"cannot be read ({e.strerror}); allowed: a JSON file")
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as e:
        refuse(f"not JSON in UTF-8 ({e}); see descriptions/toy.json for the form")
    entries = content.get("classes", content) if isinstance(content, dict) else None
    if not isinstance(entries, dict):
        refuse("holds no classes; allowed: an object of class -> text or list of texts")
    shared = Counter(classes.values())  # a name of two classes is the name of neither
    key_of = {name: key for key, name in classes.items() if shared[name] == 1} | {key: key for key in classes}
    entries = unique([(key_of.get(key, key), e) for key, e in entries.items()])
    missing, extra = [k for k in classes if k not in entries], [k for k in entries if k not in classes]
    if missing or extra:
        refuse(f"the classes differ; missing: {', '.join(missing) or 'none'}; not in the data: {', '.join(extra) or 'none'}")
    names, owner = dict(classes), {}
    for key in classes:
        if isinstance(entries[key], dict):
            names[key] = entries[key].get("name", names[key])
            if not (isinstance(names[key], str) and names[key].strip()):
                refuse(f"class {key!r} has the name {str(names[key])[:60]!r}; allowed: a text")
            entries[key] = entries[key].get("descriptions")
        texts = entries[key] = [entries[key]] if isinstance(entries[key], str) else entries[key]
        if not (isinstance(texts, list) and texts and all(isinstance(t, str) and t.strip() for t in texts)):
            refuse(f"class {key!r} has {str(texts)[:60]!r}; allowed: a text or a list of texts")
        for text in texts:
            if owner.setdefault(" ".join(text.lower().split()), key) != key:  # as the tokenizer reads it
                refuse(f"class {key!r} has the text of another class, {text!r}; allowed: texts that tell classes apart")
    return names, [entries[key] for key in classes]
