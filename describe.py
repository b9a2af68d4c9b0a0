#!/usr/bin/env python3
"""Concept descriptions: what the classes of a data set look like, whatever stands behind them.

    python describe.py --dataset fmow --llm qwen3:8b --base-url http://localhost:11434/v1
    python describe.py --check descriptions/fmow.json
    python describe.py --compare descriptions/toy.json descriptions/toy.context.json

has them written by a language model, looks for faults (offline), and sets two files side by side.
support/texts.py says what a description file looks like.
"""

import itertools
import json
import math
import os
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import open_clip
from tqdm import tqdm

from drm_min import RECIPES
from support.errors import (
    ROOT,
    BadInput,
    find,
    first_of,
    guarded,
    log,
    markdown,
    print_lines,
    printable,
    write_json,
)
from support.options import check_values, command_line, option
from support.texts import check, in_numbers, read_classes, shared_words
from toy import world
from toy.probe import sensitivity

PROMPT = """You write texts for CLIP, a model that compares texts with pictures. For each class below write
{n} different texts.
{style}
Each text is one phrase of 10 to 30 words in plain English, without the class's name, and enough by itself to
tell the class from the others in the list: put first what tells it from its look-alikes. Answer with one JSON
object and nothing else: {{"id": ["text", ...], ...}}, with exactly these ids.

Classes (id: name)
{classes}"""
STYLES = {  # the method needs core; the other two are for comparison
    "core": """A text says what the thing itself looks like: shape, parts, proportions, markings, colours,
material. Nothing that is not the thing: no habitat, background, weather, behaviour, use, viewpoint, and no
word of photos.""",
    "default": "A text is a plain caption for a photo of the class.",
    "context": """A text says where such a thing is usually seen: place, background, weather, what stands
around it. Nothing of the thing's looks.""",
}


def parse_answer(text, keys, n):
    """What a model said -> {key: [n texts]} for the keys that it answered well, whatever else it said."""
    # thoughts are left out; a template may hold their opening tag
    text = re.sub(r"<think>.*", "", (text or "").rpartition("</think>")[2], flags=re.DOTALL)

    def refuse(constant):
        raise ValueError(constant)  # NaN is no JSON

    decoder = json.JSONDecoder(parse_constant=refuse)
    # each try may read to the end, so the longer a text, the fewer: 10,000 for 10 KB
    for brace in itertools.islice(re.finditer(r'\{\s*"', text), 10**8 // (len(text) + 1)):
        try:
            value, _ = decoder.raw_decode(text, brace.start())
        except (ValueError, RecursionError):
            continue
        found = {key: usable_texts(value.get(key), n) for key in keys}
        found = {key: texts for key, texts in found.items() if texts}
        if found:
            return found
    return {}


def usable_texts(texts, n):
    """The first n texts, no two alike, or None where a file or a model cannot take n of them."""
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not all(isinstance(t, str) and t.strip() for t in texts):
        return None
    texts = list(dict.fromkeys(" ".join(t.split()) for t in texts))[:n]
    # a longer one does not fit into 77 tokens, and half a surrogate pair into no file
    good = all(len(t.split()) <= 50 and not re.search("[\ud800-\udfff]", t) for t in texts)
    return texts if good and len(texts) == n else None


class Llm:
    """A chat endpoint that speaks OpenAI's protocol. The key comes from the environment."""

    def __init__(self, model, base_url=None, seed=0, temperature=0.7, timeout=300.0, retries=6):
        from huggingface_hub import InferenceClient  # here, as nothing else needs it

        self.variable = "OPENAI_API_KEY" if base_url else "HF_TOKEN"
        key = os.environ.get(self.variable, "").strip()
        # a key without anything that is escaped in some message is found there, and hidden
        if re.search(r"""[^!-~]|["'\\<>&]""", key) or not (base_url or key):
            or_url = "" if base_url else " or --base-url URL"
            no_key = f"no key in {self.variable}; allowed: one without blanks or quotes{or_url}"
            raise BadInput(f"--llm {model}: {no_key}")
        # a stray / or # in a password would end the address there
        if base_url and not re.fullmatch(r"https?://([^\s/?#@]*@)?[^\s/?#@]+(/[^\s?#@]*)?", base_url):
            raise BadInput(f"--base-url {base_url.rpartition('@')[2]}: allowed: http://... or https://...")
        self.key = key or "none"  # with None, the token of a Hugging Face login would be sent to any endpoint
        self.client = InferenceClient(base_url=base_url, api_key=self.key, timeout=timeout)
        self.model, self.where, self.retries = model, self.hidden(base_url or "Hugging Face"), retries
        self.options = {
            "model": model,
            "seed": seed,
            "temperature": temperature,
            "response_format": {"type": "json_object"},
        }

    def hidden(self, text):
        """A text without the key, and without a name and password in an address."""
        return re.sub(r"//[^/@\s]*@", "//***@", text.replace(self.key, "***"))

    def ask(self, prompt, words):
        """-> what the model said, "" if nothing whole. Asks again where that may help, or raises BadInput."""
        messages = [{"role": "user", "content": prompt}]
        for attempt in range(self.retries):
            try:
                said = self.client.chat_completion(messages, max_tokens=4 * words + 2000, **self.options)
                return self.content(said)
            except Exception as e:  # the client, its HTTP library and a body that is no JSON raise many kinds
                response = getattr(e, "response", None)
                status = getattr(response, "status_code", None)
                if status == 400 and self.options.pop("response_format", None):
                    continue  # not every server knows it, and the prompt says the same
                self.give_up(e, status, attempt)
                wait = str(response.headers.get("Retry-After", "")) if response is not None else ""
                time.sleep(min(120, int(wait) if wait.isdecimal() else 2**attempt))

    def content(self, answer):
        choice = answer.choices[0] if answer.choices else None
        content = "" if choice is None or choice.finish_reason == "length" else choice.message.content or ""
        if isinstance(content, str):
            return content
        return "".join(part.get("text") or "" for part in content)  # some servers answer in parts

    def give_up(self, e, status, attempt):
        """Raises BadInput where another request would not help."""
        said = " ".join(self.hidden(str(e)).split())[:200]
        if status in (401, 403):
            what = f"{self.where} refuses the key in {self.variable} (status {status})"
        elif status is not None and status not in (408, 409, 425, 429) and status < 500:
            what = f"{self.where} refuses the request (status {status}): {said}"
        elif attempt == self.retries - 1:
            what = f"no answer from {self.where} after {self.retries} requests: {said}"
        else:
            return
        raise BadInput(f"--llm {self.model}: {what}") from None


def already_written(out, classes, about):
    """The classes that an earlier, interrupted call left in `out`. Raises BadInput if another one did."""
    if not os.path.lexists(out):
        return {}
    try:
        content = json.loads(out.read_text(encoding="utf-8"))
        done = {key: entry for key, entry in content["classes"].items() if key in classes}
        if all(content["about"].get(key) == about[key] for key in ("model", "prompt", "per_class")):
            return done
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise BadInput(f"--out {out}: is there, from another model or prompt; allowed: another file")


def append(path, line):
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(line)
    except OSError as e:
        raise BadInput(f"--out: {path} cannot be written ({e.strerror})") from None


def generate(classes, llm, out, about, n=2, style="core", batch=8):
    """Have `llm` (Llm) write n texts a class into `out`, each answer before the next request.

    Classes that are there are not asked again. One that is not answered well is asked again, twice, in
    smaller batches. Raises BadInput if some stay without texts.
    """
    out = Path(out)
    done = already_written(out, classes, about)
    raw = out.with_name(out.name + ".raw.jsonl")
    append(raw, "")  # what cannot be written is said before anything is paid for
    todo, tries, size = [key for key in classes if key not in done], Counter(), batch
    requests = math.ceil(len(todo) / batch)
    to_read = requests * len((PROMPT + STYLES[style]).split()) + 4 * len(todo)
    words = f"about {to_read} words to read and {25 * n * len(todo)} to write"
    log(f"{len(todo)} classes to ask for, {len(done)} are there: {requests} requests, {words}")
    with tqdm(total=len(classes), initial=len(done), unit="class") as bar:
        while todo:
            asked, todo = todo[:size], todo[size:]
            listed = "\n".join(f"{key}: {classes[key]}" for key in asked)
            said = llm.ask(PROMPT.format(n=n, style=STYLES[style], classes=listed), 40 * n * len(asked))
            append(raw, json.dumps({"asked": asked, "said": said}) + "\n")  # as it came
            found = parse_answer(said, asked, n)
            for key, texts in found.items():
                done[key] = {"name": classes[key], "descriptions": texts}
            in_order = {key: done[key] for key in classes if key in done}
            write_json(out, {"about": about, "classes": in_order}, ensure_ascii=False)
            bar.update(len(found))
            missing = [key for key in asked if key not in found]
            tries.update(missing)
            todo += [key for key in missing if tries[key] < 3]
            size = max(1, size // 2) if missing else size
    lost = [key for key in classes if key not in done]
    if lost:
        raise BadInput(
            f"--llm {about['model']}: no usable texts for {first_of(lost, 10)} after three requests; "
            "allowed: the same command again, which asks for these alone"
        )


def compare(a, b):
    """Two description files side by side -> lines of a Markdown table."""
    columns = [in_numbers(path) for path in (a, b)]
    shared = shared_words(a, b)
    if shared is not None:
        for path, column in zip((a, b), columns):
            column["words shared by both, of a class"] = shared
            if set(read_classes(find(path))) == set(world.THINGS):
                for what, value in sensitivity(path).items():
                    column[f"toy: change of affinity, {what} swapped"] = value
    rows = [["", str(a), str(b)]]
    for what in columns[0]:
        values = [column[what] for column in columns]
        rows.append([what, *(f"{v:.3g}" if isinstance(v, float) else str(v) for v in values)])
    return markdown(rows)


@dataclass(frozen=True)
class Options:
    """One of --llm, --check and --compare, and how."""

    check: str = option(None, "a file: look for faults, offline", group="check and compare")
    compare: tuple[str, ...] = option((), "two files: set them side by side")
    model: str = option(None, "check: who will read the texts; if left out, the data set's model or CLIP")
    dataset: str = option(None, "the classes of a data set, as its shipped file names them", group="classes")
    classes: str = option(None, "or a file of your own: one a line (key, or key, tab, name), or JSON")
    llm: str = option(None, "the model that writes", group="write")
    base_url: str = option(None, "its endpoint (key: OPENAI_API_KEY), else Hugging Face (key: HF_TOKEN)")
    out: str = option(None, "the file to write; if left out, descriptions/NAME.MODEL.json")
    per_class: int = option(2, "texts a class", 1, 20)
    style: str = option("core", "what a text is about; the method needs core", choices=tuple(STYLES))
    batch: int = option(8, "classes a request", 1, 1000)
    seed: int = option(0, "sent to the model", 0, 2**31)
    temperature: float = option(0.7, "sent to the model", 0, 2)
    timeout: float = option(300.0, "seconds to wait for an answer", 1, 86400)

    def __post_init__(self):
        check_values(self, {})
        if len(self.compare) not in (0, 2) or bool(self.check) + bool(self.compare) + bool(self.llm) != 1:
            raise BadInput("say one of --llm MODEL, --check FILE, --compare FILE FILE")


def classes_for(dataset, file):
    """Classes (key -> name) of a file, or of a data set, or None where neither is given."""
    if dataset and not os.path.isfile(find(f"descriptions/{dataset}.json")):
        shipped = sorted(p.stem for p in (ROOT / "descriptions").glob("*.json") if "." not in p.stem)
        raise BadInput(f"--dataset {dataset}: no such data set; allowed: {', '.join(shipped)}")
    if file:
        return read_classes(Path(file))
    return read_classes(find(f"descriptions/{dataset}.json")) if dataset else None


def tokenizer_for(dataset, model):
    """Of the model that will read the texts: what CLIP reads whole may be too long for a smaller one."""
    model = model or RECIPES.get(dataset, {}).get("model", "ViT-B-16")
    try:
        if model.startswith("local-dir:"):
            model = f"local-dir:{find(model.removeprefix('local-dir:'))}"
        elif not model.startswith("hf-hub:") and model not in open_clip.list_models():
            raise ValueError("no such model")  # open_clip itself takes CLIP's
        return open_clip.get_tokenizer(model)
    except Exception as e:  # a name or folder that is none: open_clip raises many kinds
        raise BadInput(f"--model {model}: open_clip has no tokenizer for it ({str(e)[:200]})") from None


def print_check(args):
    """Print what `check` finds -> 1 if training cannot use the file, else 0."""
    stem = Path(args.check).name.split(".")[0]  # descriptions/toy.context.json is for toy
    guessed = None if args.classes or not os.path.isfile(find(f"descriptions/{stem}.json")) else stem
    dataset = args.dataset or guessed
    classes = classes_for(dataset, args.classes)
    problems = sorted(check(args.check, classes, tokenizer_for(dataset, args.model)), reverse=True)
    if problems:
        rows = [("stop" if p.stops else "look", p.kind, p.key, p.what) for p in problems]
        print_lines(*markdown([("", "kind", "class", "what"), *rows]))
    stops = sum(p.stops for p in problems)
    alone = "" if classes else "; classes not compared, for want of --dataset or --classes"
    counts = f"{stops} faults that training should not start with, {len(problems) - stops} to look at"
    print_lines(printable(f"{args.check}: {counts}{alone}"))
    return 1 if stops else 0


def have_written(args):
    classes = classes_for(args.dataset, args.classes)
    if classes is None:
        raise BadInput("--llm: also say --dataset NAME or --classes FILE")
    slug = re.sub(r"[^A-Za-z0-9.-]+", "-", args.llm) + ("" if args.style == "core" else f".{args.style}")
    name = f"{args.dataset or Path(args.classes).stem}.{slug}.json"
    out = Path(args.out or ROOT / "descriptions" / name)
    if not out.parent.is_dir():
        raise BadInput(f"--out {out}: no folder {out.parent}")
    prompt = PROMPT.format(n=args.per_class, style=STYLES[args.style], classes="...")
    about = {"source": "written by a language model through describe.py", "model": args.llm, "prompt": prompt}
    about |= {key: getattr(args, key) for key in ("style", "per_class", "seed", "temperature")}
    about |= {"date": date.today().isoformat(), "licence": "see the terms of the model"}
    llm = Llm(args.llm, args.base_url, args.seed, args.temperature, args.timeout)
    generate(classes, llm, out, about, args.per_class, args.style, args.batch)
    print_lines(printable(f"written: {out}; now: python describe.py --check {out}"))


@guarded("describe.py", "the same command goes on")
def main(argv=None):
    """Generate, check or compare; 1 if a check finds what training cannot use."""
    args = command_line(Options, argv, "describe.py", __doc__)
    if args.compare:
        print_lines(*compare(*args.compare))
    elif args.check:
        return print_check(args)
    else:
        have_written(args)


if __name__ == "__main__":
    sys.exit(main())
