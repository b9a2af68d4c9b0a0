"""What is to look at in description files: words that CLIP cannot use, names, texts that are nearly the same.

Written for captions in English. It sees form, never truth: whether a text fits its class is for a reader.
"""

import functools
import re
import statistics
import zlib
from collections import Counter

import open_clip
import torch

from support.errors import ROOT, find, twice
from support.texts import Problem, alike, load_descriptions, normal, pairs_of, read_classes, read_descriptions
from support.weights import count_tokens

TOKENS = 20  # about what CLIP's text tower uses of a text (arXiv 2403.15378), without start and end
WORDS = 5  # fewer tell hardly one class from another
ALIKE = 0.85  # cosine of two texts that are nearly the same, see likeness()
COMMON = 10  # a class's name that so many other classes' texts hold is a common word ("orange", "muzzle")
# Words that mostly tell of a place, a time or a doing instead of the thing.
CONTEXT = frozenset(
    """background habitat forest forests woodland woodlands jungle savanna savannah grassland grasslands
    meadow meadows desert deserts ocean oceans sea lake lakes pond ponds swamp swamps marsh marshes shore
    shoreline sky snow snowy weather rain rainy sunny sunset night nocturnal daytime dusk dawn often usually
    typically commonly found lives living inhabits native endemic seen swimming flying walking perched grazing
    hunting photo photograph picture image viewed scene surroundings surrounded behavior behaviour waterhole
    river rivers riverbank stream campsite roadside street nearby eating jumping sleeping""".split()
)
FILLER = set("a an the of with and or in on to its it is that by at from for as into has two one".split())
# Little words of other languages that no English caption holds; one alone may be part of a name.
FOREIGN = "der das ein eine mit und von auf les une avec et du el los las una con y il di e um uma".split()
PLAIN_SHAPES = "cross|star|heart|cone|wedge|disc|disk|dome|diamond|oval|ring|crescent|egg|box|drop|pyramid"
NUMBER = r"(\d[\d.,]*|two|three|four|five|six|seven|eight|nine|ten|several|few)"
UNIT = r"(inch(es)?|in|feet|foot|ft|yards?|cm|mm|km|m|(centi|milli|kilo)?met(er|re)s?|pounds?|lbs?|kg|grams?)"
NOT_LESS = "seamless|stainless|wireless|less|unless|nevertheless|bless|regardless"
LOOK = {  # kind -> what no text should hold
    "negation": rf"\b(no|not|nor|neither|never|none|without|lack(s|ing)?|absen(t|ce)|missing|free of)\b"
    rf"|n't\b|\b(?!({NOT_LESS})\b)\w+less\b",
    "person": r"\b(persons?|people|m[ae]n|wom[ae]n|child(ren)?|boys?|girls?|bab(y|ies)|humans?|someone"
    r"|players?|riders?|drivers?|wearers?|worn|wearing|held|hand-?held|holding)\b",
    "comparison": r"\b(unlike|like|resembl\w+|similar)\b|\w-like\b"
    rf"|\b(?!([a-z]|{PLAIN_SHAPES})-)\w+-shaped\b",
    "size in units": rf"\b{NUMBER}([ -]to[ -]{NUMBER})?[ -]{UNIT}\b",
    "use": r"\b(used|designed|meant|intended|built|serv(es?|ing)) (to|for|as)\b|\bfor \w+ing\b",
    "sense": r"\b((smell|odou?r|scent|aroma|stink|tast[ey]|flavou?r)\w*|fragrant|nois[ey]|loud"
    r"|chirp\w*|roar(s|ing)?)\b",
    "chatter": r"\b(as an ai|sure|sorry|here (is|are)|descriptions?|json)\b|^\W*\d+[.)]|^\s*[-*#]|\|",
    "vague": r"\b((some|any)?things?|objects?|items?|stuff)\b",
    "spelling": r"\b(grey(s|ish)?|\w*colour\w*|tyres?|bonnets?|windscreens?|moustach\w+|cent(re|red)|fibres?"
    r"|plough\w*|armoured|harbours?|mould\w*|jewell\w+|theatres?|metres?|pyjamas|behaviour\w*)\b",
}


def words_of(text):
    return [w for w in re.findall(r"[a-z0-9]+", text.lower()) if w not in FILLER]


def stem(word):
    """A word without the plural's ending, where it has one."""
    for ending, instead in (("ies", "y"), ("ves", "f"), ("sses", "ss"), ("xes", "x"), ("hes", "h")):
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word[: -len(ending)] + instead
    plural = word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3
    return word[:-1] if plural else word


def plain(text):
    return re.findall(r"[a-z0-9]+", text.lower().replace("'s", ""))


def phrases(name):
    """What of a name stands for the class: "kite (bird of prey)" -> ("kite",), ("bird", "of", "prey")."""
    parts = re.split(r"[(),/;]| or ", name.replace("_", " "))
    return [tuple(plain(part)) for part in parts if plain(part)]


def check(path, classes=None, tokenizer=None, also=None):
    """Problems of a description file, those of training and those to look at. Offline.

    classes, also: see read_descriptions; tokenizer: of the model that will read the texts, or CLIP's.
    """
    tokenizer = tokenizer or open_clip.get_tokenizer("ViT-B-32")
    read = read_descriptions(path, classes, also)
    problems = list(read.problems)
    for key, other, name in alike(read.names.items()):
        problems.append(Problem(False, "equal names", key, f"also of {other}: {name!r}"))
    return problems + check_texts(read.texts, read.names, tokenizer, also)


def check_texts(texts, names, tokenizer, also=None):
    """Problems of texts (key -> [text, ...]) of classes with these names (key -> name)."""
    problems = []
    for key, own in texts.items():
        for text, times in twice([(normal(text), key) for text in own]).items():
            problems.append(Problem(False, "text twice", key, f"{times} times: {text[:60]!r}"))
        for text in own:
            problems += check_form(key, text, tokenizer)
    return problems + names_in(texts, names, also or {}) + near_duplicates(pairs_of(texts))


def check_form(key, text, tokenizer):
    """Problems of one text by itself."""
    n, room, problems = count_tokens(tokenizer, text), tokenizer.context_length, []

    def look(kind, what):
        problems.append(Problem(False, kind, key, f"{what} in {text[:60]!r}"))

    if n > room:
        problems.append(Problem(True, "too long", key, f"{n} tokens, {room} fit: {text[:40]!r}"))
    elif n - 2 > TOKENS:
        problems.append(Problem(False, "long", key, f"{n - 2} tokens, {TOKENS} are used: {text[:40]!r}"))
    words = re.findall(r"[^\W\d_]+", text.lower())
    if len(text.split()) < WORDS:
        problems.append(Problem(False, "short", key, f"fewer than {WORDS} words: {text[:60]!r}"))
    if any(ord(c) > 0x24F for c in "".join(words)) or len([w for w in words if w in FOREIGN]) > 1:
        look("language", "another than English")
    if len(set(words)) < 0.6 * len(words):
        look("repetition", "the same words")
    for word in sorted({w for w in words if w.isascii() and is_unknown(w)}):
        look("unknown word", repr(word))
    for kind, pattern in LOOK.items():
        for found in dict.fromkeys(match[0] for match in re.finditer(pattern, text.lower())):
            look(kind, repr(found))
    for word in sorted(set(words_of(text)) & CONTEXT):
        look("context word", repr(word))
    return problems


@functools.cache
def vocabulary():
    """The words of all shipped texts and names; files with a dot in their name are somebody's own."""
    files = [path for path in (ROOT / "descriptions").glob("*.json") if "." not in path.stem]
    return {word for path in files for word in re.findall("[a-z]+", path.read_text(encoding="utf-8").lower())}


@functools.cache
def is_unknown(word):
    """Whether a caption would hardly hold it: CLIP's vocabulary, made of captions, has it in many pieces."""
    pieces = len(open_clip.tokenizer._tokenizer.encode(word))
    return pieces > 3 or pieces == 3 and word not in vocabulary()


def spans_of(words):
    """All runs of one to five words, each also with the last of them in the singular."""
    runs = {tuple(words[i : i + n]) for n in range(1, 6) for i in range(len(words) - n + 1)}
    return runs | {(*run[:-1], stem(run[-1])) for run in runs}


def names_in(texts, names, also):
    """Names in texts: the class's own, whole or a part of it, in other words, and those of other classes."""
    own = {key: phrases(name) for key, name in names.items()}
    heads = Counter(head for key in own for head in {phrase[-1] for phrase in own[key]})
    owners = {}
    for key, name in names.items():
        for phrase in phrases(re.sub(r"\(.*?\)", "", name)):
            owners.setdefault(phrase, set()).add(key)
    found, holders = [], Counter()
    for key, text in pairs_of(texts):
        spans = spans_of(plain(text))
        # a last word that several classes' names share is their category
        others = {p for name in also.get(key, ()) for p in phrases(name) if len(p) > 1 or heads[p[0]] < 2}
        several = [phrase for phrase in own[key] if len(phrase) > 1]
        parts = {phrase[-1:] for phrase in several if heads[phrase[-1]] == 1} & spans
        parts |= {phrase for phrase in several if {(word,) for word in phrase} <= spans}  # in any order
        kinds = {"class name": {*own[key]} & spans, "synonym": others & spans, "part of a name": parts}
        for kind in [kind for kind, some in kinds.items() if some][:1]:
            found.append((kind, key, min(kinds[kind]), text))
        for phrase in spans & owners.keys():
            if phrase not in own[key] and key not in owners[phrase]:
                found.append(("another class's name", key, phrase, text))
                holders[phrase] += 1
    problems = []
    for kind, key, phrase, text in found:
        if kind != "another class's name" or holders[phrase] <= COMMON:
            problems.append(Problem(False, kind, key, f"{' '.join(phrase)!r} in {text[:60]!r}"))
    return problems


def likeness(texts):
    """Texts (T,) -> (T, 4096), unit vectors: how often each holds which three letters, rare ones more."""
    grams = torch.zeros(len(texts), 4096)
    for row, text in zip(grams, texts):
        padded = f" {normal(text)} "
        places = [zlib.crc32(padded[i : i + 3].encode()) % 4096 for i in range(len(padded) - 2)]
        row.index_add_(0, torch.tensor(places), torch.ones(len(places)))
    holding = (grams > 0).sum(0)
    return torch.nn.functional.normalize(grams * (1 + len(texts) / holding.clamp(min=1)).log(), dim=1)


def pairwise(texts):
    """How alike texts (T,) are -> cosines (T, T): near 1 where a word or a letter differs."""
    vectors = likeness(texts)
    return vectors @ vectors.T


def near_duplicates(pairs):
    """Two texts, of one class or of two, that differ in hardly more than a word or a letter."""
    vectors, problems = likeness([text for _, text in pairs]), []
    for start in range(0, len(pairs), 1000):  # of 50,000 texts all cosines would take 10 GB
        close = vectors[start : start + 1000] @ vectors.T > ALIKE  # (1000, T)
        for i, j in close.triu(start + 1).nonzero().tolist():
            (key, text), (other, other_text) = pairs[start + i], pairs[j]
            if normal(text) != normal(other_text):
                what = f"{text[:40]!r} and {other}'s {other_text[:40]!r}"
                problems.append(Problem(False, "near-duplicate", key, what))
    return problems


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
