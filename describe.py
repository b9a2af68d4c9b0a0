#!/usr/bin/env python3
"""Concept descriptions: what the classes of a data set look like, whatever stands behind them.

A description file is JSON in UTF-8: {"about": {...}, "classes": {key: {"name": "...", "descriptions": ["...", ...]}}}. This file
reads them, has a language model write them, checks them before training, and sets two side by side:

    python describe.py --dataset fmow --llm qwen3:8b --base-url http://localhost:11434/v1
    python describe.py --check descriptions/fmow.json
    python describe.py --compare descriptions/toy.json descriptions/toy.context.json
"""
import argparse
import itertools
import json
import math
import os
import re
import shutil
import statistics
import sys
import time
from collections import Counter
from datetime import date
from pathlib import Path

from safetensors import SafetensorError
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent

PROMPT = """You write texts for CLIP, a model that compares texts with pictures. For each class below write {n} different texts.
{style}
Each text is one phrase of 10 to 30 words in plain English, without the class's name, and enough by itself to tell the class from
the others in the list: put first what tells it from its look-alikes. Answer with one JSON object and nothing else:
{{"id": ["text", ...], ...}}, with exactly these ids.

Classes (id: name)
{classes}"""
STYLES = {  # the method needs core; the other two are for comparison
    "core": "A text says what the thing itself looks like: shape, parts, proportions, markings, colours, material. Nothing that is not "
            "the thing: no habitat, background, weather, behaviour, use, viewpoint, and no word of photos.",
    "default": "A text is a plain caption for a photo of the class.",
    "context": "A text says where such a thing is usually seen: place, background, weather, what stands around it. Nothing of the thing's looks."}

# Words that mostly tell of a place, a time or a doing instead of the thing.
CONTEXT = set("""background habitat forest forests woodland woodlands jungle savanna savannah grassland grasslands meadow meadows desert
deserts ocean oceans sea lake lakes pond ponds swamp swamps marsh marshes shore shoreline sky snow snowy weather rain rainy sunny sunset
night nocturnal daytime dusk dawn often usually typically commonly found lives living inhabits native endemic seen swimming flying
walking perched grazing hunting photo photograph picture image viewed scene surroundings surrounded behavior behaviour""".split())
FILLER = set("a an the of with and or in on to its it is that by at from for as into has two one".split())


def printable(text):
    """Control characters, which would command a terminal, as their escapes."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


class BadInput(ValueError):
    """A fault of the input, in one line that names the thing, its value and what is allowed (exit code 2)."""

    def __str__(self):
        return printable(super().__str__())


def twice(pairs):
    """The keys that come more than once in (key, value) pairs, and how often; a dict of them would silently keep the last."""
    return {key: times for key, times in Counter(key for key, _ in pairs).items() if times > 1}


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise BadInput(message)


def row(*cells):
    """A row of a Markdown table."""
    return "| " + " | ".join(" ".join(printable(cell).split()).replace("|", "\\|") for cell in cells) + " |"


def log(text):
    """A line for the reader, on standard error: standard output is for results."""
    tqdm.write(printable(text), file=sys.stderr)


def find(path):
    """A relative path is looked for here first, then beside this file, so that the shipped files are always found."""
    path = Path(path)
    return path if os.path.exists(path) or path.is_absolute() else ROOT / path


def write(path, save):
    """save(temporary path) of a file or a folder, then rename: an interrupted or failed write costs nothing that is there. Raises BadInput."""
    path = Path(path)
    temporary, old = path.with_name(path.name + ".tmp"), path.with_name(path.name + ".old")
    try:
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)
        save(temporary)
        if path.is_dir() and not temporary.is_dir():
            temporary.unlink()
            raise IsADirectoryError(0, "a folder has that name")
        if path.is_dir():  # a folder that is not empty cannot be replaced in one move
            os.replace(path, old)
        os.replace(temporary, path)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as e:
        raise BadInput(f"{path}: cannot be written ({getattr(e, 'strerror', None) or e}); what was there before is still there") from None


# ------------------------------------------------------------------------------------------------------------ reading

def load_descriptions(path, classes):
    """Description file -> one list of texts per class, in the order of `classes` (key -> name). Raises BadInput.

    Matched by key, never by position: a key is a class's key or its name. Shapes: {"classes": {key: {"descriptions":
    [text, ...]}}}, and those of the authors' release, {key: text} and {key: [text, ...]}.
    """
    return load_names_and_descriptions(path, classes)[1]


def load_names_and_descriptions(path, classes):
    """As load_descriptions, and before it the classes with the names that the file gives them: (key -> name, texts)."""
    try:
        raw = find(path).read_bytes()
    except OSError as e:
        raise BadInput(f"--descriptions {path}: cannot be read ({e.strerror}); allowed: a JSON file") from None
    return names_and_texts(raw, classes, f"--descriptions {path}")


def names_and_texts(raw, classes, where):
    """The bytes of a description file -> (key -> name, texts); what training reads, and what `check` asks last. Raises BadInput."""
    def refuse(what):
        raise BadInput(f"{where}: {what}")

    def unique(pairs):
        if twice(pairs):
            refuse(f"{', '.join(map(repr, twice(pairs)))} repeated; each class comes once")
        return dict(pairs)

    try:
        content = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as e:  # no UTF-8, no JSON, or a number of thousands of digits
        if isinstance(e, BadInput):
            raise
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


def read_classes(dataset=None, path=None):
    """Classes (key -> name) of a data set, as the shipped file has them, or of a file: JSON (a description file, or key: name), or a
    class a line, with a tab between key and name if they differ. Raises BadInput."""
    path = Path(path) if path else find(f"descriptions/{dataset}.json")
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise BadInput(f"{path}: no classes can be read ({e})") from None
    def unique(pairs):
        if twice(pairs):
            raise BadInput(f"{path}: {next(iter(twice(pairs)))!r} comes twice; allowed: each class once")
        return dict(pairs)

    if text.lstrip()[:1] in ("{", "["):
        try:
            content = json.loads(text, object_pairs_hook=unique)
            content = content.get("classes", content) if isinstance(content, dict) else unique([(key, key) for key in content])
            classes = {key: entry.get("name", key) if isinstance(entry, dict) else entry if isinstance(entry, str) else key
                       for key, entry in content.items()}
        except (ValueError, TypeError, AttributeError, RecursionError) as e:
            if isinstance(e, BadInput):
                raise
            raise BadInput(f"{path}: no JSON of classes ({e})") from None
    else:
        lines = [line.split("\t") for line in text.splitlines() if line.strip()]
        classes = unique([(line[0].strip(), line[-1].strip()) for line in lines])
    for part in (part for pair in classes.items() for part in pair):
        if not (isinstance(part, str) and part.strip()):
            raise BadInput(f"{path}: a class has the key or name {str(part)[:60]!r}; allowed: a text")
    if len(classes) < 2:
        raise BadInput(f"{path}: {len(classes)} classes; allowed: 2 or more, one a line")
    return classes


# --------------------------------------------------------------------------------------------------------- generation

def parse_answer(text, keys, n):
    """What a model said -> {key: [n texts]} for the keys that it answered well. Fences, prose and thoughts around the JSON are left out."""
    text = re.sub(r"<think>.*", "", (text or "").rpartition("</think>")[2], flags=re.DOTALL)  # a template may hold the opening tag

    def refuse(constant):
        raise ValueError(constant)  # NaN is no JSON

    decoder = json.JSONDecoder(parse_constant=refuse)
    # each try may read to the end, so the longer a text, the fewer: 10,000 for 10 KB
    for brace in itertools.islice(re.finditer(r'\{\s*"', text), 10**8 // (len(text) + 1)):
        try:
            value, _ = decoder.raw_decode(text, brace.start())
        except (ValueError, RecursionError):
            continue
        found = {}
        for key in keys:
            texts = value.get(key)
            texts = [texts] if isinstance(texts, str) else texts
            if isinstance(texts, list) and all(isinstance(t, str) and t.strip() for t in texts):
                texts = list(dict.fromkeys(" ".join(t.split()) for t in texts))[:n]
                # a longer one does not fit into 77 tokens, and half a surrogate pair into no file
                if len(texts) == n and all(len(t.split()) <= 50 and not re.search("[\ud800-\udfff]", t) for t in texts):
                    found[key] = texts
        if found:
            return found
    return {}


class Llm:
    """A chat endpoint that speaks OpenAI's protocol, through huggingface_hub. The key comes from the environment alone."""

    def __init__(self, model, base_url=None, seed=0, temperature=0.7, timeout=300.0, retries=6):
        from huggingface_hub import InferenceClient  # here, as nothing else needs it

        self.variable = "OPENAI_API_KEY" if base_url else "HF_TOKEN"
        key = os.environ.get(self.variable, "").strip()
        # a key without anything that is escaped in some message is found there, and hidden
        if re.search(r"""[^!-~]|["'\\<>&]""", key) or not base_url and not key:
            raise BadInput(f"--llm {model}: the environment variable {self.variable} holds no key; allowed: a key without blanks or quotes"
                           + " or --base-url URL" * (not base_url))
        if base_url and not re.fullmatch(r"https?://([^\s/?#@]*@)?[^\s/?#@]+(/[^\s?#@]*)?", base_url):  # a stray / or # in a password is none
            raise BadInput(f"--base-url {base_url.rpartition('@')[2]}: allowed: http://... or https://...")
        self.key = key or "none"  # never None: the token of a Hugging Face login would be sent to any endpoint
        self.client = InferenceClient(base_url=base_url, api_key=self.key, timeout=timeout)
        self.model, self.where, self.retries = model, self.hidden(base_url or "Hugging Face"), retries
        self.options = dict(seed=seed, temperature=temperature, response_format=dict(type="json_object"))

    def hidden(self, text):
        """A text without the key, and without a name and password in an address."""
        return re.sub(r"//[^/@\s]*@", "//***@", text.replace(self.key, "***"))

    def ask(self, prompt, words):
        """-> what the model said, or "" if it said nothing whole. Waits and asks again where that may help; raises BadInput where not."""
        for attempt in range(self.retries):
            try:
                answer = self.client.chat_completion([dict(role="user", content=prompt)], model=self.model, max_tokens=4 * words + 2000,
                                                     **self.options)
                choice = answer.choices[0] if answer.choices else None
                said = "" if choice is None or choice.finish_reason == "length" else choice.message.content or ""
                return said if isinstance(said, str) else "".join(part.get("text") or "" for part in said)  # some servers answer in parts
            except Exception as e:  # huggingface_hub, its HTTP library (which changed) and a body that is no JSON raise many kinds
                response = getattr(e, "response", None)
                status = getattr(response, "status_code", None)
                said = " ".join(self.hidden(str(e)).split())[:200]
                if status == 400 and self.options.pop("response_format", None):
                    continue  # not every server knows it, and the prompt says the same
                if status in (401, 403):
                    raise BadInput(f"--llm {self.model}: {self.where} refuses the key in {self.variable} (status {status})") from None
                if status is not None and status not in (408, 409, 425, 429) and status < 500:
                    raise BadInput(f"--llm {self.model}: {self.where} refuses the request (status {status}): {said}") from None
                if attempt == self.retries - 1:
                    raise BadInput(f"--llm {self.model}: no answer from {self.where} after {self.retries} requests: {said}") from None
                wait = str(response.headers.get("Retry-After", "")) if response is not None else ""
                time.sleep(min(120, int(wait) if wait.isdecimal() else 2 ** attempt))


def generate(classes, llm, out, about, n=2, style="core", batch=8):
    """Have `llm` (Llm) write n texts a class into `out`, each answer before the next request; classes that are there are not asked again.

    A class that is not answered well is asked again, twice, in smaller batches. Raises BadInput if some stay without texts.
    """
    done, out = {}, Path(out)
    if os.path.lexists(out):
        try:
            content = json.loads(out.read_text(encoding="utf-8"))
            done = {key: entry for key, entry in content["classes"].items() if key in classes}
            same = all(content["about"].get(k) == about[k] for k in ("model", "prompt", "per_class"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            same = False
        if not same:
            raise BadInput(f"--out {out}: is there, and not from the same model and prompt; allowed: another file, or remove it")
    try:
        raw = out.with_name(out.name + ".raw.jsonl")
        with open(raw, "a", encoding="utf-8"):
            pass
    except OSError as e:
        raise BadInput(f"--out {out}: cannot be written ({e.strerror})") from None
    todo, tries, size = [key for key in classes if key not in done], Counter(), batch
    prompt_words = len((PROMPT + STYLES[style]).split())
    log(f"{len(todo)} classes to ask for, {len(done)} are there: {math.ceil(len(todo) / batch)} requests, about "
        f"{math.ceil(len(todo) / batch) * prompt_words + 4 * len(todo)} words to read and {25 * n * len(todo)} to write")
    with tqdm(total=len(classes), initial=len(done), unit="class") as bar:
        while todo:
            asked, todo = todo[:size], todo[size:]
            prompt = PROMPT.format(n=n, style=STYLES[style], classes="\n".join(f"{key}: {classes[key]}" for key in asked))
            said = llm.ask(prompt, 40 * n * len(asked))
            try:
                with open(raw, "a", encoding="utf-8") as file:  # as it came, whatever is made of it
                    file.write(json.dumps(dict(asked=asked, said=said)) + "\n")
            except OSError as e:
                raise BadInput(f"{raw}: cannot be written ({e.strerror})") from None
            found = parse_answer(said, asked, n)
            done |= {key: dict(name=classes[key], descriptions=texts) for key, texts in found.items()}
            content = dict(about=about, classes={key: done[key] for key in classes if key in done})
            write(out, lambda path: path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"))
            bar.update(len(found))
            missing = [key for key in asked if key not in found]
            tries.update(missing)
            todo += [key for key in missing if tries[key] < 3]
            size = max(1, size // 2) if missing else size
    lost = [key for key in classes if key not in done]
    if lost:
        raise BadInput(f"--llm {about['model']}: no usable texts for {', '.join(lost[:10])}{', ...' * (len(lost) > 10)} after three requests; "
                       "allowed: the same command again, which asks for these alone")


# ----------------------------------------------------------------------------------------------------- check and compare

def words_of(text):
    return [w for w in re.findall(r"[a-z0-9]+", text.lower()) if w not in FILLER]


def check(path, classes=None):
    """Faults of a description file -> [(True if training should not start, kind, class, what)]. With `classes` (key -> name), also
    which are missing and extra. Offline."""
    import open_clip

    tokenizer, faults = open_clip.get_tokenizer("ViT-B-32"), []

    def unique(pairs):
        faults.extend((True, "repeated key", key, f"{times} times; a reader keeps the last") for key, times in twice(pairs).items())
        return dict(pairs)

    try:
        raw = find(path).read_bytes()
        content = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except OSError as e:
        raise BadInput(f"{path}: cannot be read ({e.strerror})") from None
    except (UnicodeDecodeError, ValueError, RecursionError) as e:
        marks = {b"\xef\xbb": "a byte-order mark", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
        what = marks.get(raw[:2], str(e))
        return [(True, "encoding" if raw[:2] in marks or isinstance(e, UnicodeDecodeError) else "JSON", "-", f"{what}; allowed: JSON in UTF-8")]
    entries = content.get("classes", content) if isinstance(content, dict) else None
    if not isinstance(entries, dict) or not entries:
        return [(True, "JSON", "-", "no object of class -> texts")]
    names, texts = {}, []  # texts: (key, text)
    for key, entry in entries.items():
        entry = entry if isinstance(entry, dict) else dict(descriptions=entry)
        names[key] = entry.get("name", (classes or {}).get(key, key))
        if not (isinstance(names[key], str) and names[key].strip()):
            faults.append((True, "name", key, f"{str(names[key])[:60]!r}; allowed: a text"))
            names[key] = key
        of_class = entry.get("descriptions")
        of_class = [of_class] if isinstance(of_class, str) else of_class
        if not (isinstance(of_class, list) and of_class and all(isinstance(t, str) and t.strip() for t in of_class)):
            faults.append((True, "no texts", key, f"{str(of_class)[:60]!r}"))
            continue
        texts += [(key, text) for text in of_class]
    if classes is not None:
        by_name = {name: key for key, name in classes.items()}
        there = {by_name.get(key, key) if key not in classes else key for key in entries}
        faults += [(True, "missing", key, name) for key, name in classes.items() if key not in there]
        faults += [(True, "extra", key, "is no class") for key in entries if key not in classes and key not in by_name]
    for kind, pairs in (("equal names", list(names.items())), ("equal texts", texts)):
        owner = {}
        for key, text in pairs:
            alike = owner.setdefault(" ".join(text.lower().split()), [])
            if alike:
                faults.append((True, kind, key, f"also of {alike[0]}: {text[:60]!r}"))
            alike.append(key)
    bags = []
    for key, text in texts:
        n, words = len(tokenizer.encode(text)) + 2, words_of(text)
        if n > 77:
            faults.append((True, "too long", key, f"{n} tokens, 77 fit: {text[:40]!r}"))
        if re.search(rf"\b{re.escape(names[key].lower())}(s|es)?\b", text.lower()):
            faults.append((False, "class name", key, f"{names[key]!r} in {text[:60]!r}"))
        for word in sorted(set(words) & CONTEXT):
            faults.append((False, "context word", key, f"{word!r} in {text[:60]!r}"))
        bags.append((key, text, frozenset(words)))
    by_word = {}  # a text is compared with those that share its rarest words, not with all
    for i, (_, _, bag) in enumerate(bags):
        for word in bag:
            by_word.setdefault(word, []).append(i)
    for i, (key, text, bag) in enumerate(bags):
        rare = sorted(bag, key=lambda word: len(by_word[word]))[:max(1, math.ceil(len(bag) / 5))]
        for j in sorted({j for word in rare for j in by_word[word] if j > i}):
            other, other_text, other_bag = bags[j]
            if other != key and text.lower() != other_text.lower() and len(bag & other_bag) >= 0.85 * len(bag | other_bag):
                faults.append((True, "near-duplicate", key, f"{text[:40]!r} and {other}'s {other_text[:40]!r}"))
    if not any(stop for stop, *_ in faults):  # a file that passes must be one that training takes
        try:
            names_and_texts(raw, classes or {key: key for key in entries}, "training")
        except BadInput as e:
            faults.append((True, "refused", "-", str(e)))
    return faults


def statistics_of(path):
    """A description file in numbers -> {what: value}."""
    import open_clip

    tokenizer, classes = open_clip.get_tokenizer("ViT-B-32"), read_classes(path=find(path))
    texts = [(key, text) for key, of_class in zip(classes, load_descriptions(path, classes)) for text in of_class]
    tokens, faults = [len(tokenizer.encode(t)) + 2 for _, t in texts], Counter(kind for _, kind, *_ in check(path))
    return {"classes": len(classes), "texts": len(texts), "words a text": statistics.fmean(len(t.split()) for _, t in texts),
            "tokens a text": statistics.fmean(tokens), "longest, in tokens": max(tokens), "context words": faults["context word"],
            "class names in texts": faults["class name"]}


def sensitivity(path, n=2000):
    """On the toy world: how much the affinity of a picture to its class's texts changes when the place behind the thing is swapped, and
    when the thing is -> {"background": mean absolute change, "foreground": ...}. The paper's Figure 2, measured here."""
    import torch

    import drm_min
    from toy import world

    model, tokenizer = drm_min.load_clip("local-dir:toy/clip")
    head = drm_min.build_head(model, drm_min.tokenize(tokenizer, load_descriptions(path, {name: name for name in world.THINGS})))
    g = torch.Generator().manual_seed(0)
    things, places, shift = (torch.randint(low, world.C, (n,), generator=g) for low in (0, 0, 1))

    def affinity(shown, behind):  # painted with the same chance, so that the pose stays
        images = world.paint(shown, behind, torch.ones(n, dtype=torch.bool), torch.Generator().manual_seed(1), 0.04, 0.1)
        with torch.no_grad():
            return (drm_min.image_features(model, images) * head[things]).sum(1)  # (N,)

    before = affinity(things, places)
    return {"background": (affinity(things, (places + shift) % world.C) - before).abs().mean().item(),
            "foreground": (affinity((things + shift) % world.C, places) - before).abs().mean().item()}


def compare(a, b):
    """Two description files side by side -> lines of a Markdown table."""
    columns = [statistics_of(path) for path in (a, b)]
    classes = read_classes(path=find(a))
    if set(classes) == set(read_classes(path=find(b))):
        bags = [[frozenset(w for text in of_class for w in words_of(text)) for of_class in load_descriptions(path, classes)] for path in (a, b)]
        shared = statistics.fmean(len(x & y) / max(1, len(x | y)) for x, y in zip(*bags))
        for column in columns:
            column["words shared by both, of a class"] = shared
        from toy import world
        if set(classes) == set(world.THINGS):
            for column, path in zip(columns, (a, b)):
                measured = sensitivity(path)
                column |= {f"toy: change of affinity, {what} swapped": value for what, value in measured.items()}
    rows = [["", str(a), str(b)], ["---"] * 3]
    rows += [[what, *(f"{c[what]:.3g}" if isinstance(c[what], float) else str(c[what]) for c in columns)] for what in columns[0]]
    return [row(*cells) for cells in rows]


# ------------------------------------------------------------------------------------------------------- command line

def number(kind, low, high):
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text}: allowed: {'a whole number' if kind is int else 'a number'} from {low} to {high}")
        return value
    return parse


def main(argv=None):
    """Generate, check or compare; returns the exit code: 1 if a check finds what training should not start with, 2 for bad input."""
    parser = Parser(prog="describe.py", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--check", metavar="FILE", help="look for faults, offline")
    parser.add_argument("--compare", metavar="FILE", nargs=2, help="set two files side by side")
    parser.add_argument("--dataset", metavar="NAME", help="the classes of a data set, as its shipped file names them")
    parser.add_argument("--classes", metavar="FILE", help="or your own: one a line (key, or key and name with a tab between), or JSON")
    parser.add_argument("--llm", metavar="MODEL", help="the model that writes")
    parser.add_argument("--base-url", metavar="URL", help="its endpoint, such as http://localhost:11434/v1 (key: OPENAI_API_KEY); without it, "
                        "Hugging Face (key: HF_TOKEN)")
    parser.add_argument("--out", metavar="FILE", help="the file to write; descriptions/NAME.MODEL.json if left out")
    parser.add_argument("--per-class", type=number(int, 1, 20), default=2, metavar="N", help="texts a class [default: 2]")
    parser.add_argument("--style", choices=STYLES, default="core", help="what a text is about; the method needs core [default: core]")
    parser.add_argument("--batch", type=number(int, 1, 1000), default=8, metavar="N", help="classes a request [default: 8]")
    parser.add_argument("--seed", type=number(int, 0, 2**31), default=0, metavar="N", help="sent to the model [default: 0]")
    parser.add_argument("--temperature", type=number(float, 0, 2), default=0.7, metavar="X", help="sent to the model [default: 0.7]")
    parser.add_argument("--timeout", type=number(float, 1, 86400), default=300.0, metavar="SECONDS", help="for one answer [default: 300]")
    try:
        args = parser.parse_args(argv)
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")  # a terminal that knows no ideograms shows question marks
        if sum(bool(x) for x in (args.check, args.compare, args.llm)) != 1:
            raise BadInput("say one of --llm MODEL, --check FILE, --compare FILE FILE")
        if args.dataset and not os.path.isfile(find(f"descriptions/{args.dataset}.json")):
            shipped = sorted(p.stem for p in (ROOT / "descriptions").glob("*.json") if "." not in p.stem)
            raise BadInput(f"--dataset {args.dataset}: no such data set; allowed: {', '.join(shipped)}")
        if args.compare:
            print(*compare(*args.compare), sep="\n")
            return 0
        dataset = args.dataset
        if args.check and not dataset and not args.classes:  # descriptions/toy.context.json is for toy
            stem = Path(args.check).name.split(".")[0]
            dataset = stem if os.path.isfile(find(f"descriptions/{stem}.json")) else None
        classes = read_classes(dataset, args.classes) if dataset or args.classes else None
        if args.check:
            faults = sorted(check(args.check, classes), reverse=True)
            rows = [["", "kind", "class", "what"], ["---"] * 4, *([("stop" if stop else "look"), kind, key, what] for stop, kind, key, what in faults)]
            if faults:
                print(*(row(*cells) for cells in rows), sep="\n")
            stops = sum(stop for stop, *_ in faults)
            print(printable(f"{args.check}: {stops} faults that training should not start with, {len(faults) - stops} to look at")
                  + ("" if classes else "; classes not compared, for want of --dataset or --classes"))
            return 1 if stops else 0
        if classes is None:
            raise BadInput("--llm: also say --dataset NAME or --classes FILE")
        slug = re.sub(r"[^A-Za-z0-9.-]+", "-", args.llm)
        out = Path(args.out or ROOT / "descriptions" / f"{dataset or Path(args.classes).stem}.{slug}{'' if args.style == 'core' else '.' + args.style}.json")
        about = dict(source="written by a language model through describe.py", model=args.llm, style=args.style, per_class=args.per_class,
                     prompt=PROMPT.format(n=args.per_class, style=STYLES[args.style], classes="..."), date=date.today().isoformat(),
                     seed=args.seed, temperature=args.temperature, licence="see the terms of the model")
        if not out.parent.is_dir():
            raise BadInput(f"--out {out}: no folder {out.parent}")
        generate(classes, Llm(args.llm, args.base_url, args.seed, args.temperature, args.timeout), out, about, args.per_class, args.style, args.batch)
    except BadInput as e:
        print(f"describe.py: {' '.join(str(e).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("describe.py: stopped; the same command goes on", file=sys.stderr)
        return 130
    print(printable(f"written: {out}; now: python describe.py --check {out}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
