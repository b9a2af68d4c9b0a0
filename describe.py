#!/usr/bin/env python3
"""Concept descriptions: what the classes of a data set look like, whatever stands behind them.

    python describe.py --dataset fmow --llm qwen3:8b --base-url http://localhost:11434/v1
    python describe.py --check descriptions/fmow.json
    python describe.py --compare descriptions/toy.json descriptions/toy.context.json

has them written by a language model, looks for faults (offline), and sets two files side by side.
support/texts.py says what a description file looks like.
"""

import json
import os
import re
import sys
from collections import Counter
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import open_clip
from tqdm import tqdm

from support.errors import ROOT, BadInput, find, first_of, guarded, log, markdown, print_lines, write_json
from support.llm import Llm, parse_answer
from support.options import check_values, command_line, option
from support.settings import RECIPES
from support.texts import other_names, read_classes, read_descriptions, read_named
from support.wording import TOKENS, check, check_texts, in_numbers, pairwise, shared_words
from toy import world
from toy.probe import sensitivity

PROMPT = """You write texts for CLIP, a model that compares texts with pictures. The pictures: {domain}.
For each class below write {n} different texts.
{style}
Each text is one phrase of 6 to 14 words (at most {tokens} tokens) in plain American English, such as a
caption holds, and enough by itself to tell the class from the others below, many of which look alike: let
those differ in what you name first. Answer with one JSON object and nothing else:
{{"id": ["text", ...], ...}}, with exactly these ids.
{again}
Classes (id: name)
{classes}"""
STYLES = {  # the method needs core; the other two are for comparison
    "core": """A text says what the thing itself looks like, as far as such pictures show it: it opens with
the kind of thing and its best mark, then shape, parts, proportions, markings, colors, material. It holds
nothing that is not the thing: no habitat, background, weather, behavior, use, sound, smell or viewpoint, no
people, no word of photos, no sizes in units. It holds no name, neither the class's own, nor a part of it, nor
another's, and compares with nothing. It says what is there, never what is not: no "no", "not" or "-less".
Example, for a class "plains zebra": "stocky wild horse, broad black and white stripes down to the belly".""",
    "default": """A text is a plain caption for a photo of the class.
Example, for a class "plains zebra": "a photo of a plains zebra".""",
    "context": """A text says where such a thing is usually seen: place, background, weather, what stands
around it. Nothing of the thing's looks, and no name.
Example, for a class "plains zebra": "dry yellow grassland with scattered thorn trees under a wide sky".""",
}
ANY_PICTURES = "photos of all kinds"


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


def requests_of(classes, known, size):
    """Classes (key -> Named) -> lists of keys, those that look alike in one.

    What is alike is found over all of them, by name, gloss and what texts (key -> [text, ...]) are `known`.
    """
    keys = list(classes)
    words = [" ".join([*classes[key][:2], *known.get(key, ())]) for key in keys]
    alike = pairwise(words) + pairwise([classes[key].name for key in keys])  # (C, C)
    group = {i: [i] for i in range(len(keys))}  # each class's, one list for all in it
    for pair in alike.triu(1).flatten().topk(min(20 * len(keys), alike.numel())).indices.tolist():
        a, b = (group[i] for i in divmod(pair, len(keys)))
        if a is not b and len(a) + len(b) <= size:
            a += b
            group |= dict.fromkeys(b, a)
    requests = []
    for members in {id(members): members for members in group.values()}.values():
        if requests and len(requests[-1]) + len(members) <= size:
            requests[-1] += members
        else:
            requests.append([*members])
    return [[keys[i] for i in sorted(request)] for request in requests]


def entry_of(named, texts):
    """A class as a file has it."""
    entry = {"name": named.name, "gloss": named.gloss, "also": list(named.also), "descriptions": texts}
    return {field: value for field, value in entry.items() if value}


def reasons_of(problems, strict):
    """Why texts are asked for again, or None: what --check would stop for, and other languages."""
    wrong = [p for p in problems if p.stops or strict or p.kind == "language"]
    return "; ".join(f"{p.kind}: {p.what}" for p in wrong)[:300] or None


def generate(classes, llm, out, about, tokenizer, known, batch, strict):
    """Have `llm` (Llm) write texts for `classes` (key -> Named) into the file `out`, as `about` says.

    Each answer is there before the next request. Classes that are there are not asked again. One whose texts
    are missing, or cannot be used by the model of the `tokenizer`, is asked again, twice, in smaller batches,
    with the reason; if `strict`, also one with something to look at. Raises BadInput if some stay without.
    """
    n = about["per_class"]
    done = already_written(out, classes, about)
    raw = out.with_name(out.name + ".raw.jsonl")
    append(raw, "")  # what cannot be written is said before anything is paid for
    names = {key: named.name for key, named in classes.items()}
    also = {key: named.also for key, named in classes.items()}
    left = {key: named for key, named in classes.items() if key not in done}
    groups = requests_of(left, known, batch)
    todo, tries, why = [key for group in groups for key in group], Counter(), {}
    to_read = len(groups) * len(about["prompt"].split()) + 8 * len(todo)
    words = f"about {to_read} words to read and {18 * n * len(todo)} to write"
    log(f"{len(todo)} classes to ask for, {len(done)} are there: {len(groups)} requests, {words}")
    size = batch
    with tqdm(total=len(classes), initial=len(done), unit="class") as bar:
        while todo:
            asked, todo = todo[:size], todo[size:]
            prompt = request_for({key: classes[key] for key in asked}, why, about["prompt"])
            said, ended = llm.ask(prompt, 40 * n * len(asked))
            append(raw, json.dumps({"asked": asked, "said": said, "why": ended}) + "\n")  # as it came
            found = parse_answer(said, asked, n)
            for key in asked:
                problems = check_texts({key: found.get(key, [])}, names, tokenizer, also)
                why[key] = reasons_of(problems, strict)
                if key not in found:
                    why[key] = ended or f"{n} different texts did not come"
                elif reasons_of(problems, strict=False) is None:
                    bar.update(key not in done)
                    done[key] = entry_of(classes[key], found[key])
            in_order = {key: done[key] for key in classes if key in done}
            write_json(out, {"about": about, "classes": in_order}, ensure_ascii=False)
            missing = [key for key in asked if why[key]]
            tries.update(missing)
            todo += [key for key in missing if tries[key] < 3]
            size = max(1, size // 2) if missing else size
    lost = [key for key in classes if key not in done]
    if lost:
        what = f"no usable texts for {first_of(lost, 10)} after three requests ({why[lost[0]]})"
        again = "the same command again, which asks for these alone"
        raise BadInput(f"--llm {about['model']}: {what}; allowed: {again}")


def request_for(classes, why, prompt):
    """The prompt for some classes (key -> Named), with what was wrong (key -> reason) the last time."""
    again = "".join(f"{key}: {why[key]}\n" for key in classes if why.get(key))
    again = again and f"Your last texts of these could not be used:\n{again}"
    glosses = {key: f" ({named.gloss})" if named.gloss else "" for key, named in classes.items()}
    listed = "\n".join(f"{key}: {named.name}{glosses[key]}" for key, named in classes.items())
    return prompt.replace("{again}\n", again).replace("{classes}", listed)


def compare(a, b):
    """Two description files side by side -> lines of a Markdown table."""
    columns = [in_numbers(path) for path in (a, b)]
    shared = shared_words(a, b)
    if shared is not None:
        for path, column in zip((a, b), columns):
            column["words shared by both, of a class"] = shared
            if set(read_classes(find(path))) == set(world.OBJECTS):
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
    strict: bool = option(False, "check: what is to look at stops too; llm: it is asked again")
    model: str = option(None, "who will read the texts; if left out, the data set's model or CLIP")
    dataset: str = option(None, "the classes of a data set, as its shipped file names them", group="classes")
    classes: str = option(None, "or a file: one a line (key, tab, name, tab, gloss; or less), or JSON")
    llm: str = option(None, "the model that writes", group="write")
    base_url: str = option(None, "its endpoint (key: OPENAI_API_KEY), else Hugging Face (key: HF_TOKEN)")
    out: str = option(None, "the file to write; if left out, descriptions/NAME.MODEL.json")
    domain: str = option(None, "the pictures in words; if left out, the data set's")
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
    """Classes (key -> Named) of a file, or of a data set, or None where neither is given."""
    if dataset and not os.path.isfile(find(f"descriptions/{dataset}.json")):
        names = sorted(p.stem for p in (ROOT / "descriptions").glob("*.json") if "." not in p.stem)
        raise BadInput(f"--dataset {dataset}: no such data set; allowed: {', '.join(names)}")
    if file:
        return read_named(Path(file))
    return read_named(find(f"descriptions/{dataset}.json")) if dataset else None


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
    """Print what `check` finds -> 1 if training cannot use the file, or if it is --strict, else 0."""
    dataset, stem = args.dataset, Path(args.check).name.split(".")[0]  # toy.context.json is for toy
    if not dataset and not args.classes and os.path.isfile(find(f"descriptions/{stem}.json")):
        dataset = stem
    classes = classes_for(dataset, args.classes) or {}
    names = {key: named.name for key, named in classes.items()}
    also = other_names(dataset) or {key: named.also for key, named in classes.items()}
    problems = sorted(check(args.check, names, tokenizer_for(dataset, args.model), also), reverse=True)
    if problems:
        rows = [("stop" if p.stops or args.strict else "look", p.kind, p.key, p.what) for p in problems]
        print_lines(*markdown([("", "kind", "class", "what"), *rows]))
    stops = sum(p.stops or args.strict for p in problems)
    kinds = ", ".join(f"{kind} {n}" for kind, n in Counter(p.kind for p in problems).most_common())
    alone = "" if classes else "; classes not compared, for want of --dataset or --classes"
    counts = f"{stops} faults that training should not start with, {len(problems) - stops} to look at"
    counts += f" ({kinds})" * bool(kinds)
    print_lines(f"{args.check}: {counts}{alone}; a wrong thing, well described, is seen by you alone")
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
    domain = args.domain or RECIPES.get(args.dataset, {}).get("domain", ANY_PICTURES)
    left = {"again": "{again}", "classes": "{classes}"}  # for each request to fill in
    prompt = PROMPT.format(domain=domain, n=args.per_class, style=STYLES[args.style], tokens=TOKENS, **left)
    about = {"source": "written by a language model through describe.py", "model": args.llm, "prompt": prompt}
    about |= {key: getattr(args, key) for key in ("style", "per_class", "seed", "temperature")}
    about |= {"date": date.today().isoformat(), "license": "see the terms of the model"}
    llm = Llm(args.llm, args.base_url, args.seed, args.temperature, args.timeout)
    tokenizer = tokenizer_for(args.dataset, args.model)
    known = read_descriptions(f"descriptions/{args.dataset}.json").texts if args.dataset else {}
    generate(classes, llm, out, about, tokenizer, known, args.batch, args.strict)
    print_lines(f"written: {out}; now: python describe.py --check {out}")


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
