"""Description files: one reader that collects what is wrong. Training refuses what it cannot use.

A description file is JSON in UTF-8: {"about": {...}, "classes": {key: {"name": "...", "descriptions":
[...]}}}, where a class may also have a "scientific_name", a "gloss" (which sense of the name is meant) and
other names ("also"). The shapes of the authors' release, {key: text} and {key: [text, ...]}, load too.
"""

import json
import math
import unicodedata
from pathlib import Path
from typing import NamedTuple

from support.errors import ROOT, BadInput, find, first_of, log, twice


class Problem(NamedTuple):
    """What is wrong with a description file."""

    stops: bool  # training cannot use it; else it is to look at
    kind: str
    key: str  # the class, or "-"
    what: str


class Descriptions(NamedTuple):
    names: dict  # key -> name, as the file or else the data set says it
    texts: dict  # key -> [text, ...]
    problems: list


def normal(text):
    """A text as the tokenizer reads it."""
    return " ".join(text.lower().split())


def as_words(name):
    """A name without what two files may write in two ways: capitals, underscores, é as one sign or two."""
    return normal(unicodedata.normalize("NFKC", name).replace("_", " "))


def alike(pairs):
    """(key, other key, text) for each text, of (key, text) pairs, that another key has too."""
    owner = {}
    owned = [(key, owner.setdefault(normal(text), key), text) for key, text in pairs]
    return [(key, other, text) for key, other, text in owned if key != other]


def pairs_of(texts):
    """{key: [text, ...]} -> (key, text) pairs."""
    return [(key, text) for key, own in texts.items() for text in own]


def other_names(dataset):
    """{key: (name, ...)}: what the classes of a data set are called, by its shipped file, if it has one."""
    path = ROOT / "descriptions" / f"{dataset}.json"
    return {key: (c.name, *c.also) for key, c in read_named(path).items()} if path.is_file() else {}


def read_descriptions(path, classes=None, also=None):
    """A file -> Descriptions, with every problem. Raises BadInput where there is no such file.

    Texts are matched by key, never by position: a key is a class's key, its name, or one of its other names
    `also` (see other_names). Without `classes` (key -> name) those of the file are taken.
    """
    problems = []
    try:
        raw = find(path).read_bytes()
    except OSError as e:
        raise BadInput(f"--descriptions {path}: cannot be read ({e.strerror}); allowed: JSON") from None

    def unique(pairs):
        for key, times in twice(pairs).items():
            problems.append(Problem(True, "repeated key", key, f"{times} times; allowed: once"))
        return dict(pairs)

    def nothing(kind, what):
        return Descriptions({}, {}, [Problem(True, kind, "-", what)])

    try:
        content = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as e:  # no UTF-8, no JSON, or a number of thousands of digits
        marks = {b"\xef\xbb": "a byte-order mark", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
        no_text = raw[:2] in marks or isinstance(e, UnicodeDecodeError)
        what = f"not JSON in UTF-8 ({marks.get(raw[:2], e)}); see descriptions/toy.json for the form"
        return nothing("encoding" if no_text else "JSON", what)
    entries = content.get("classes", content) if isinstance(content, dict) else None
    if not isinstance(entries, dict) or not entries:
        return nothing("JSON", "holds no classes; allowed: an object of class -> text or list of texts")
    classes = classes or {key: key for key in entries}
    owners = owners_of(entries, classes, also or {})
    entries = unique([(key, entries[given]) for given, keys in owners.items() for key in keys])
    problems += said_of_keys(owners, classes)
    for key in classes:
        if key not in entries:
            problems.append(Problem(True, "missing", key, f"no texts for {classes[key]!r}"))
    names, texts = {}, {}
    for key, entry in entries.items():
        if key not in classes:
            problems.append(Problem(True, "extra", key, "no class of the data"))
        names[key], texts[key], wrong = read_entry(key, entry, classes.get(key, key).replace("_", " "))
        problems += wrong
    for key, other, text in alike(pairs_of(texts)):
        problems.append(Problem(False, "equal texts", key, f"also of {other}: {text[:60]!r}"))
    return Descriptions(names, texts, problems)


def owners_of(entries, classes, also):
    """Which classes a file means by its keys -> {key of the file: [key of a class, ...]}.

    A name of two classes means those of them that no other key of the file means: all, if there is none.
    Digits at the ends of a name are left out where only that makes it one. What means none stays as it is.
    """
    called = {}
    for key, name in classes.items():
        for other in {as_words(name), *map(as_words, also.get(key, ()))} - {""}:
            called.setdefault(other, []).append(key)
    may_mean = {given: called.get(as_words(given), []) for given in entries}
    for given, keys in may_mean.items():  # the name itself before another name
        may_mean[given] = [key for key in keys if as_words(classes[key]) == as_words(given)] or keys
    may_mean |= {given: [given] for given in entries if given in classes}
    owners, owned = {}, set()
    # what means one class comes first, what means none last
    for given in sorted(entries, key=lambda given: len(may_mean[given]) or math.inf):
        meant = may_mean[given] or called.get(as_words(given).strip("0123456789 "), [])
        free = [key for key in meant if key not in owned]
        owners[given] = free or may_mean[given][:1] or [given]
        owned |= {*owners[given]}
    return {given: owners[given] for given in entries}


def said_of_keys(owners, classes):
    """Problems to look at: keys that are read as another name, or that mean several classes."""
    problems = []
    for given, keys in owners.items():
        if given not in (keys[0], classes.get(keys[0])) and keys[0] in classes:
            problems.append(Problem(False, "mended key", keys[0], f"{given!r} in the file"))
        for key in keys[1:]:
            problems.append(Problem(False, "shared key", key, f"{given!r} also means {keys[0]}"))
    return problems


def read_entry(key, entry, name):
    """What a file says of a class -> (name, texts, problems)."""
    problems = []
    if isinstance(entry, dict):
        own = entry.get("name", name)
        if isinstance(own, str) and own.strip():
            name = " ".join(own.split())
        else:
            problems.append(Problem(True, "name", key, f"{str(own)[:60]!r}; allowed: a text"))
        entry = entry.get("descriptions")
    texts = [entry] if isinstance(entry, str) else entry
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
        what = f"{str(texts)[:60]!r}; allowed: a text or a list of texts"
        return name, [], [*problems, Problem(True, "no texts", key, what)]
    return name, texts, problems


def load_names_and_descriptions(path, classes, also=None):
    """Description file -> (key -> name, lists of texts), in the order of `classes`. Raises BadInput."""
    read = read_descriptions(path, classes, also)
    if any(problem.stops for problem in read.problems):
        said = in_a_line([problem for problem in read.problems if problem.stops])
        raise BadInput(f"--descriptions {path}: {said}")
    if read.problems:
        log(f"{path}: {in_a_line(read.problems)}")
    return {key: read.names[key] for key in classes}, [read.texts[key] for key in classes]


def in_a_line(problems):
    """Each kind once, with its classes and what is wrong with the first of them."""
    said = []
    for kind in dict.fromkeys(problem.kind for problem in problems):
        own = [problem for problem in problems if problem.kind == kind]
        keys = first_of(dict.fromkeys(repr(problem.key) for problem in own))
        said.append(own[0].what if own[0].key == "-" else f"{kind}: {keys} ({own[0].what})")
    return "; ".join(said)


def load_descriptions(path, classes):
    """As load_names_and_descriptions, the texts alone."""
    return load_names_and_descriptions(path, classes)[1]


def prompts_of(config, classes):
    """The prompts of a run -> {"default": {key: [texts]}, "concept": {key: [texts]}}. Raises BadInput."""
    if config.descriptions is None:
        allowed = "a JSON file, see descriptions/toy.json for the form"
        raise BadInput(f"--descriptions: {config.dataset} needs them; allowed: {allowed}")
    also = other_names(config.dataset)
    names, descriptions = load_names_and_descriptions(config.descriptions, classes, also)
    default = {key: [t.replace("{}", name) for t in config.template] for key, name in names.items()}
    same = alike([(key, prompts[0]) for key, prompts in default.items()])
    if same:
        pairs = first_of(f"{other!r} and {key!r}" for key, other, _ in same)
        log(f"{pairs} have one default prompt, {same[0][2]!r}: that head cannot tell them apart")
    before, after = config.concept_template.split("{text}")
    concept = {}
    for (key, name), own in zip(names.items(), descriptions):
        start, end = before.replace("{name}", name), after.replace("{name}", name)
        concept[key] = [start + text + end for text in own]
    return {"default": default, "concept": concept}


def saved_prompts(saved, classes, config):
    """The prompts of a model that a run saved, in the order of the classes. Raises BadInput for others."""
    if any(set(saved["prompts"][head]) != set(classes) for head in ("default", "concept")):
        what = f"its drm.json has prompts for other classes than --dataset {config.dataset}"
        raise BadInput(f"--eval-only --model {config.model}: {what}")
    return {head: {key: saved["prompts"][head][key] for key in classes} for head in ("default", "concept")}


class Named(NamedTuple):
    """A class in a file of classes."""

    name: str
    gloss: str = ""  # which sense of the name is meant, a scientific name, or both
    also: tuple = ()  # other names


def read_classes(path):
    """Classes (key -> name) of a file. Raises BadInput. See read_named."""
    return {key: named.name for key, named in read_named(path).items()}


def read_named(path):
    """A file of classes, JSON or lines of key[, tab, name[, tab, gloss]] -> {key: Named}. Raises BadInput."""

    def unique(pairs):
        if twice(pairs):
            raise BadInput(f"{path}: {next(iter(twice(pairs)))!r} comes twice; allowed: each class once")
        return dict(pairs)

    try:
        raw = Path(path).read_bytes()
        text = raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        if text.lstrip()[:1] in ("{", "["):
            classes = classes_in(json.loads(text, object_pairs_hook=unique), unique)
        else:
            lines = [[part.strip() for part in line.split("\t")] for line in text.splitlines()]
            lines = [[*line, line[0]][: max(2, len(line))] for line in lines if any(line)]
            classes = unique([(line[0], Named(line[1], *line[2:3])) for line in lines])
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as e:
        raise e if isinstance(e, BadInput) else BadInput(f"{path}: no classes can be read ({e})") from None
    for key, named in classes.items():
        for part in (key, named.name, *(x for x in (named.gloss, *named.also) if x != "")):
            if not (isinstance(part, str) and part.strip("_ \t\r\n")):
                what = f"a class has the key, name or gloss {str(part)[:60]!r}; allowed: a text"
                raise BadInput(f"{path}: {what}")
    if len(classes) < 2:
        raise BadInput(f"{path}: {len(classes)} classes; allowed: 2 or more, one a line")
    said = {key: " ".join(named.name.replace("_", " ").split()) for key, named in classes.items()}
    return {key: named._replace(name=said[key]) for key, named in classes.items()}  # as training says them


def classes_in(content, unique):
    """JSON of any of the forms above -> key -> Named."""
    if isinstance(content, list):
        return unique([(key, Named(key)) for key in content])
    classes = {}
    for key, entry in content.get("classes", content).items():
        if isinstance(entry, dict):
            science = [entry["scientific_name"]] if entry.get("scientific_name") else []
            gloss = [entry["gloss"]] if entry.get("gloss") else []
            also = (*science, *entry.get("also", ()))
            classes[key] = Named(entry.get("name", key), "; ".join(science + gloss), also)
        else:
            classes[key] = Named(key if isinstance(entry, list) else entry)
    return classes
