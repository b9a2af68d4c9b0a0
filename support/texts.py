"""Description files: one reader that collects what is wrong. Training refuses it, --check lists it.

A description file is JSON in UTF-8: {"about": {...}, "classes": {key: {"name": "...", "descriptions":
[...]}}}; the shapes of the authors' release, {key: text} and {key: [text, ...]}, load too.
"""

import json
import re
import statistics
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import open_clip
import torch

from support.errors import BadInput, find, first_of, log, twice
from support.weights import count_tokens

# Words that mostly tell of a place, a time or a doing instead of the thing.
CONTEXT = frozenset(
    """background habitat forest forests woodland woodlands jungle savanna savannah grassland grasslands
    meadow meadows desert deserts ocean oceans sea lake lakes pond ponds swamp swamps marsh marshes shore
    shoreline sky snow snowy weather rain rainy sunny sunset night nocturnal daytime dusk dawn often usually
    typically commonly found lives living inhabits native endemic seen swimming flying walking perched grazing
    hunting photo photograph picture image viewed scene surroundings surrounded behavior behaviour""".split()
)
FILLER = set("a an the of with and or in on to its it is that by at from for as into has two one".split())
ALIKE = 0.85  # of their words are shared by two texts that are nearly the same


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


def alike(pairs):
    """(key, other key, text) for each text, of (key, text) pairs, that another key has too."""
    owner = {}
    owned = [(key, owner.setdefault(normal(text), key), text) for key, text in pairs]
    return [(key, other, text) for key, other, text in owned if key != other]


def pairs_of(texts):
    """{key: [text, ...]} -> (key, text) pairs."""
    return [(key, text) for key, own in texts.items() for text in own]


def read_bytes(path):
    try:
        return find(path).read_bytes()
    except OSError as e:
        raise BadInput(f"--descriptions {path}: cannot be read ({e.strerror}); allowed: JSON") from None


def read_descriptions(raw, classes=None):
    """The bytes of a file -> Descriptions, with every problem that keeps training from using it.

    Texts are matched by key, never by position: a key is a class's key or its name. Without `classes` (key
    -> name) those of the file are taken.
    """
    problems = []

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
    entries = unique([(key_of(key, classes), entry) for key, entry in entries.items()])
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
        problems.append(Problem(True, "equal texts", key, f"also of {other}: {text[:60]!r}"))
    return Descriptions(names, texts, problems)


def key_of(name, classes):
    """The key of a class that is called by its name. A name of two classes is the name of neither."""
    if name in classes:
        return name
    keys = [key for key, of_class in classes.items() if of_class == name]
    return keys[0] if len(keys) == 1 else name


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


def load_names_and_descriptions(path, classes):
    """Description file -> (key -> name, lists of texts), in the order of `classes`. Raises BadInput."""
    read = read_descriptions(read_bytes(path), classes)
    if read.problems:
        raise BadInput(f"--descriptions {path}: {in_a_line(read.problems)}")
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
    names, descriptions = load_names_and_descriptions(config.descriptions, classes)
    default = {key: [t.replace("{}", name) for t in config.template] for key, name in names.items()}
    for key, other, text in alike([(key, prompts[0]) for key, prompts in default.items()]):
        log(f"{other!r} and {key!r} have one default prompt, {text!r}: that head cannot tell them apart")
    return {"default": default, "concept": dict(zip(classes, descriptions))}


def saved_prompts(saved, classes, config):
    """The prompts of a model that a run saved, in the order of the classes. Raises BadInput for others."""
    if any(set(saved["prompts"][head]) != set(classes) for head in ("default", "concept")):
        what = f"its drm.json has prompts for other classes than --dataset {config.dataset}"
        raise BadInput(f"--eval-only --model {config.model}: {what}")
    return {head: {key: saved["prompts"][head][key] for key in classes} for head in ("default", "concept")}


def read_classes(path):
    """Classes (key -> name) of a file: JSON, or a line each (key, or key, tab, name). Raises BadInput."""
    try:
        raw = Path(path).read_bytes()
        text = raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise BadInput(f"{path}: no classes can be read ({e})") from None

    def unique(pairs):
        if twice(pairs):
            raise BadInput(f"{path}: {next(iter(twice(pairs)))!r} comes twice; allowed: each class once")
        return dict(pairs)

    try:
        if text.lstrip()[:1] in ("{", "["):
            classes = classes_in(json.loads(text, object_pairs_hook=unique), unique)
        else:
            lines = [line.split("\t") for line in text.splitlines() if line.strip()]
            classes = unique([(line[0].strip(), line[-1].strip()) for line in lines])
    except (ValueError, TypeError, AttributeError, RecursionError) as e:
        raise e if isinstance(e, BadInput) else BadInput(f"{path}: no JSON of classes ({e})") from None
    for part in (*classes, *classes.values()):
        if not (isinstance(part, str) and part.strip()):
            raise BadInput(f"{path}: a class has the key or name {str(part)[:60]!r}; allowed: a text")
    if len(classes) < 2:
        raise BadInput(f"{path}: {len(classes)} classes; allowed: 2 or more, one a line")
    return classes


def classes_in(content, unique):
    """JSON of any of the forms above -> key -> name."""
    if isinstance(content, list):
        return unique([(key, key) for key in content])
    classes = {key: key if isinstance(e, list) else e for key, e in content.get("classes", content).items()}
    return {key: e.get("name", key) if isinstance(e, dict) else e for key, e in classes.items()}


def check(path, classes=None, tokenizer=None):
    """Problems of a description file, those of training and those to look at. Offline.

    With `classes` (key -> name), also which are missing and extra. `tokenizer`: of the model that will read
    the texts; CLIP's, which reads 77 tokens, if left out.
    """
    tokenizer = tokenizer or open_clip.get_tokenizer("ViT-B-32")
    read = read_descriptions(read_bytes(path), classes)
    problems = list(read.problems)
    for key, other, name in alike(read.names.items()):
        problems.append(Problem(False, "equal names", key, f"also of {other}: {name!r}"))
    for key, own in read.texts.items():
        for text, times in twice([(normal(text), key) for text in own]).items():
            problems.append(Problem(False, "text twice", key, f"{times} times: {text[:60]!r}"))
        for text in own:
            problems += check_text(key, text, read.names[key], tokenizer)
    return problems + near_duplicates(pairs_of(read.texts))


def check_text(key, text, name, tokenizer):
    """Problems of one text by itself."""
    problems, n = [], count_tokens(tokenizer, text)
    if n > tokenizer.context_length:
        what = f"{n} tokens, {tokenizer.context_length} fit: {text[:40]!r}"
        problems.append(Problem(True, "too long", key, what))
    if re.search(rf"\b{re.escape(name.lower())}(s|es)?\b", text.lower()):
        problems.append(Problem(False, "class name", key, f"{name!r} in {text[:60]!r}"))
    for word in sorted(set(words_of(text)) & CONTEXT):
        problems.append(Problem(False, "context word", key, f"{word!r} in {text[:60]!r}"))
    return problems


def near_duplicates(pairs):
    """Texts of two classes that share nearly all their words."""
    bags = [set(words_of(text)) for _, text in pairs]
    number = {word: i for i, word in enumerate(sorted(set().union(*bags)))}
    holds = torch.zeros(len(pairs), len(number), dtype=torch.double)  # (T, V): which text holds which word
    for i, bag in enumerate(bags):
        holds[i, [number[word] for word in bag]] = 1
    shared, size = holds @ holds.T, holds.sum(1)  # (T, T), (T,)
    either = size[:, None] + size - shared
    problems = []
    for i, j in ((shared >= ALIKE * either) & (either > 0)).triu(1).nonzero().tolist():
        (key, text), (other, other_text) = pairs[i], pairs[j]
        if key != other and normal(text) != normal(other_text):
            what = f"{text[:40]!r} and {other}'s {other_text[:40]!r}"
            problems.append(Problem(False, "near-duplicate", key, what))
    return problems


def words_of(text):
    return [w for w in re.findall(r"[a-z0-9]+", text.lower()) if w not in FILLER]


def in_numbers(path):
    """A description file in numbers -> {what: value}."""
    tokenizer, classes = open_clip.get_tokenizer("ViT-B-32"), read_classes(find(path))
    texts = [text for own in load_descriptions(path, classes) for text in own]
    tokens = [count_tokens(tokenizer, text) for text in texts]
    kinds = Counter(problem.kind for problem in check(path))
    numbers = {"classes": len(classes), "texts": len(texts)}
    numbers["words a text"] = statistics.fmean(len(text.split()) for text in texts)
    numbers |= {"tokens a text": statistics.fmean(tokens), "longest, in tokens": max(tokens)}
    return numbers | {"context words": kinds["context word"], "class names in texts": kinds["class name"]}


def shared_words(a, b):
    """Two files of the same classes -> the share of words that both have, a mean over classes; else None."""
    classes = read_classes(find(a))
    if set(classes) != set(read_classes(find(b))):
        return None
    bags = []
    for path in (a, b):
        bags.append([{w for text in own for w in words_of(text)} for own in load_descriptions(path, classes)])
    return statistics.fmean(len(x & y) / max(1, len(x | y)) for x, y in zip(*bags))
