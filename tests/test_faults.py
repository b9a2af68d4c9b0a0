"""Things are broken on purpose and counted: every fault ends in one line and costs nothing that was there.

`python -m pytest tests/test_faults.py -q -s` prints how many were tried and survived, by area.
"""
import ast
import contextlib
import io
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import urllib.error
import zlib
from pathlib import Path

import open_clip
import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file

import describe
import drm_min
import files
import test_data
from test_checkpoints import (  # noqa: F401  fixtures are used by their names
    CLASSES, DRM, NAME, VIT, argv, equal, evaluation, one_thread, run, stop_at, stopped, weights, world)
from test_data import CSV, FMOW, pictures, table
from test_describe import ALL, KEY, Stub, one_tokenizer, reply, says, stub  # noqa: F401

GOOD = {name: [f"{name} with a tail", f"what a {name}"] for name in CLASSES}
IDS = {"0": "crane", "1": "sea lion", "2": "dik-dik"}
WRITTEN = {key: dict(name=name, descriptions=[f"first of {key}", f"second of {key}"]) for key, name in IDS.items()}
PIECES = {"words.json": {"ski": "plank", "tent": "cloth"}, "pools.json": {"ski": "plank", "swimming_pool": "water"},
          "animals.json": {str(y): f"beast {y}" for y in range(11)}, "lands.json": {"airport_hangar": "a shed", "zoo": "cages"}}
NEST = "[" * 100_000


@pytest.fixture(autouse=True)
def short_model(monkeypatch):
    """open_clip knows the small ViT by name, and no test asks the network."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, NAME, VIT)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@contextlib.contextmanager
def within(seconds):
    """What takes longer hangs."""
    def hangs(*_):
        raise AssertionError(f"hangs: not done after {seconds} s")

    if not hasattr(signal, "setitimer"):
        yield
        return
    old = signal.signal(signal.SIGALRM, hangs)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def contents(folder):
    """Every file below a folder with its bytes: a fingerprint. Folders do not count, as an empty one costs nothing."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def png(width, height, rows=b""):
    """A PNG of 8 bits of grey that claims any size."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


class Trap:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, made):
        self.made = made

    def __reduce__(self):
        return open, (str(self.made), "w")


class Place:
    """A folder with results that must not change, and what the faults are made of. A builder returns a command line of drm_min."""

    def __init__(self, root, world, stopped, patch):
        self.root, self.world, self.stopped, self.patch, self.out = root, world, stopped, patch, root / "out"
        for name in ("results.json", "tradeoff.png", "erm-seed-0/model/drm.json"):
            self.write(f"out/{name}", f"old {name}")
        self.ids = ["--classes", str(self.write("ids.json", IDS))]
        self.llm = ["--llm", "writer", "--base-url", "http://127.0.0.1:9/v1", *self.ids]

    def write(self, name, content):
        """Bytes, text or something for JSON -> its path."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = content if isinstance(content, (bytes, str)) else json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def run(self, *words, **more):
        """On the `folder` data set of small pictures and the small random ViT."""
        return argv(self.out, self.world, **dict(method="zero-shot", epochs=1) | more) + [str(word) for word in words]

    def texts(self, content=None, **changes):
        """With a description file of this content, or of good texts with changes."""
        return self.run(descriptions=self.write("d.json", GOOD | changes if content is None else content))

    def data(self, dataset, descriptions, damage=lambda base: None, make=None):
        """A data set in miniature, damaged after it was made."""
        base = self.root / "data"
        make(base) if make else base.mkdir()
        damage(base)
        more = {}
        if descriptions:
            more = dict(descriptions=self.write("words.json", PIECES[descriptions] if isinstance(descriptions, str) else descriptions))
        return self.run(dataset=dataset, data_root=str(base / "own.csv" if dataset == "csv" else base), **more)

    def csv(self, *rows, header="path,label,split,domain", only=False, damage=lambda base: None, words="words.json"):
        def make(base):
            pictures(base, *(f"{name}.png" for name in "abcdef"))
            (base / "own.csv").write_text("\n".join([header, *(() if only else CSV), *rows]) + "\n", encoding="utf-8", newline="")

        return self.data("csv", words, damage, make)

    def image(self, make):
        """One test image that is not as it should be: bytes, or a function of its path."""
        def damage(base):
            make(base / "x.png") if callable(make) else (base / "x.png").write_bytes(make)

        return self.csv("x.png,ski,test,x", damage=damage)

    def folder(self, *more, damage=lambda base: None, words="pools.json"):
        return self.data("folder", words, damage, lambda base: test_data.own_folder(base, *more))

    def imagenet(self, *more, damage=lambda base: None):
        return self.data("imagenet", None, damage, lambda base: test_data.imagenet(base, *more)) + [
            "--descriptions", str(describe.ROOT / "descriptions/imagenet.json")]

    def birds(self, *rows, header="img_id,img_filename,y,split,place", only=False, damage=lambda base: None):
        def make(base):
            given = () if only else ("0,a.png,0,0,0", "1,a.png,1,0,1", "2,a.png,0,1,0", "3,a.png,1,2,0", "4,a.png,1,2,1")
            table(base / "waterbirds_v1.0/metadata.csv", header, *given, *rows)
            pictures(base, "waterbirds_v1.0/a.png", "outside.png")

        return self.data("waterbirds", {"landbird": "claws", "waterbird": "webs"}, damage, make)

    def cameras(self, file=None, row=None, damage=lambda base: None):
        def add(base):
            pictures(base, "outside.jpg")
            if file:
                with open(base / "iwildcam_v2.0" / file, "a", encoding="utf-8") as end:
                    end.write(row + "\n")
            damage(base / "iwildcam_v2.0")

        return self.data("iwildcam", "animals.json", add, test_data.iwildcam)

    def satellite(self, *rows, damage=lambda base: None):
        def add(base):
            with open(base / "fmow_v1.1/rgb_metadata.csv", "a", encoding="utf-8") as end:
                end.write("".join(f"{row}\n" for row in rows))
            damage(base / "fmow_v1.1")

        return self.data("fmow", "lands.json", add, lambda base: test_data.fmow(base, FMOW))

    def cifar(self, damage):
        """CIFAR-10 and STL-10 where nothing can be downloaded."""
        def download(*_, **__):
            raise urllib.error.URLError("no route to host")

        for module in (torchvision.datasets.cifar, torchvision.datasets.stl10):
            self.patch.setattr(module, "download_and_extract_archive", download)
        return self.data("cifar10", None, damage)

    def model(self, damage, method="zero-shot", **files):
        """A copy of the ViT with other files (None: without it): config, weights, drm."""
        folder = self.root / "model"
        shutil.copytree(self.world / "vit", folder)
        for name, content in files.items():
            path = folder / dict(config="open_clip_config.json", weights="open_clip_model.safetensors", drm="drm.json")[name]
            path.unlink(missing_ok=True)
            if name == "weights" and isinstance(content, dict):
                save_file(content, path)
            elif content is not None:
                self.write(path, content)
        if damage:
            damage(folder)
        return self.run(model=f"local-dir:{folder}", method=method)

    def config(self, **changes):
        return self.model(None, config=json.loads((self.world / "vit/open_clip_config.json").read_text()) | changes)

    def spoilt(self, value, method="zero-shot"):
        """Weights that are all one value."""
        state = {k: torch.full_like(v, value) if v.is_floating_point() else v for k, v in weights(self.world / "vit").items()}
        return self.model(None, method, weights=state)

    def pretrained(self, content, name="w.pt"):
        path = self.root / name
        torch.save(content, path) if not isinstance(content, bytes) else path.write_bytes(content)
        return self.run(model=NAME, pretrained=path)

    def resume(self, damage=None, tensors=None, **changes):
        """A run that was stopped in step 3 of 4 goes on, with changes to its drm.json or the tensors of a file, or other damage."""
        shutil.copytree(self.stopped, self.out, dirs_exist_ok=True)
        step = self.out / DRM / "step-3"
        if tensors:
            file, change = tensors
            save_file(change(load_file(step / file)), step / file)
        elif damage:
            damage(step)
        else:
            (step / "drm.json").write_text(json.dumps(json.loads((step / "drm.json").read_text()) | changes))
        return argv(self.out, self.world, select="best") + ["--resume"]

    def evaluate(self, content=None, dataset="folder", **changes):
        """--eval-only on a model whose drm.json has this content, or good content with changes."""
        good = dict(method="drm", beta=0.5, lam=1.0, seed=0, prompts=PROMPTS)
        self.model(None, drm=good | changes if content is None else content)
        return ["--eval-only", "--dataset", dataset, "--data-root", str(self.world / "data"), "--device", "cpu", "--workers", "0",
                "--model", f"local-dir:{self.root / 'model'}", "--out", str(self.out)]


def self_holding():
    state = {}
    state["model"] = state
    return state


LONG_TEXT = "plank " * 90
PROMPTS = {head: {c: [c] for c in CLASSES} for head in ("default", "concept")}
# area -> name -> (builder, words that the line must hold)
FAULTS = {
    "command line": {
        "a name longer than a file may have": (lambda p: p.run("--out", p.root / ("n" * 300)), ["--out", "nnn"]),
        "output on a device": (lambda p: p.run("--out", os.devnull), ["--out", os.devnull]),
        "a rate that overflows": (lambda p: p.run("--lr", "1e999"), ["--lr", "inf"]),
        "a whole number of 5000 digits": (lambda p: p.run("--epochs", "9" * 5000), ["--epochs", "999"]),
        "a seed too large": (lambda p: p.run("--seed", 2**31 + 1), ["--seed", "2147483649"]),
        "a weight that is no number": (lambda p: p.run("--beta", "nan"), ["--beta", "nan", "from 0 to 1"]),
        "a template without a place for the name": (lambda p: p.run("--template", "a photo"), ["--template", "a photo"]),
        "a template with two places": (lambda p: p.run("--template", "{} and {}"), ["--template", "{} and {}"]),
        "a template of 5000 words": (lambda p: p.run("--template", "x " * 5000 + "{}"), ["default prompts", "tokens", "77"]),
        "an empty template": (lambda p: p.run("--template", ""), ["--template"]),
        "parts of a contrastive batch": (lambda p: p.run("--accumulate", 2, "--loss", "flyp"), ["--accumulate 2"]),
        "fewer than no workers": (lambda p: p.run("--workers", -1), ["--workers", "-1"]),
        "more workers than there are": (lambda p: p.run("--workers", 1025), ["--workers", "1025", "1024"]),
        "an option cut short": (lambda p: p.run("--meth", "erm"), ["--meth"]),
        "a word without an option": (lambda p: p.run("stray"), ["stray"]),
        "a switch with a value": (lambda p: p.run("--resume", "no"), ["no"]),
        "a device without memory": (lambda p: p.run("--device", "meta"), ["--device", "meta"]),
        "lambdas that look alike": (lambda p: p.run("--sweep", 0.12345671, 0.12345672), ["--sweep", "0.12345671"]),
        "alphas that look alike": (lambda p: p.run("--alpha", 0.50000001, 0.5), ["--alpha", "0.50000001"]),
        "an oracle where nobody knows": (lambda p: p.run("--core-targets", "oracle", method="drm"),
            ["--core-targets", "oracle", "folder"]),
        "a schema that nobody has": (lambda p: p.run(model="foo:bar"), ["--model", "foo:bar"]),
        "a path up from the hub": (lambda p: p.run(model="hf-hub:../../x"), ["--model", "hf-hub:../../x"]),
        "a folder without a name": (lambda p: p.run(model="local-dir:"), ["--model", "local-dir:"]),
        "weights for a model that has its own": (lambda p: p.run(model="hf-hub:a/b", pretrained="openai"),
            ["--pretrained", "openai"]),
        "evaluation with other prompts": (lambda p: p.evaluate() + ["--template", "a {}"], ["--template"]),
        "evaluation over seeds": (lambda p: p.evaluate() + ["--seeds", "3"], ["--eval-only", "one seed"]),
    },
    "description files": {
        "10 MB of nesting": (lambda p: p.texts('{"cat":' * 1_500_000), ["d.json", "not JSON"]),
        "nesting just not too deep, as a text": (
            lambda p: p.texts(json.dumps(GOOD)[:-1].replace('"owl"', '"x"') + ',"owl":' + "[" * 500 + "]" * 500 + "}"),
                                                 ["d.json", "not in the data: x"]),
        "nesting as the texts of a class": (lambda p: p.texts('{"dog":"a","owl":"b","cat":' + "[" * 500 + "]" * 500 + "}"),
            ["d.json", "'cat'"]),
        "an object for a text": (lambda p: p.texts(cat=[{"text": "a"}]), ["d.json", "'cat'"]),
        "NaN for texts": (lambda p: p.texts(cat=float("nan")), ["d.json", "'cat'", "nan"]),
        "true for texts": (lambda p: p.texts(cat=True), ["d.json", "'cat'", "True"]),
        "null for classes": (lambda p: p.texts({"classes": None}), ["d.json", "no classes"]),
        "a byte-order mark": (lambda p: p.texts(b"\xef\xbb\xbf" + json.dumps(GOOD).encode()), ["d.json", "UTF-8"]),
        "UTF-16": (lambda p: p.texts(json.dumps(GOOD).encode("utf-16")), ["d.json", "UTF-8"]),
        "a comma too many": (lambda p: p.texts(json.dumps(GOOD)[:-1] + ",}"), ["d.json", "not JSON"]),
        "two files in one": (lambda p: p.texts(json.dumps(GOOD) * 2), ["d.json", "not JSON"]),
        "capitals in a key": (lambda p: p.texts({"Cat": "a", "dog": "b", "owl": "c"}), ["missing: cat", "Cat"]),
        "a path for a key": (lambda p: p.texts(**{"../../x": "a"}), ["not in the data: ../../x"]),
        "a class without a name": (lambda p: p.texts(cat=dict(name=" ", descriptions=["a"])), ["'cat'", "the name ' '"]),
        "a list for a name": (lambda p: p.texts(cat=dict(name=["x"], descriptions=["a"])), ["'cat'", "['x']"]),
        "the name of another class": (lambda p: p.texts(cat=dict(name="dog", descriptions=["a"])), ["'cat' and 'dog'"]),
        "a name longer than the context": (lambda p: p.texts(cat=dict(name=LONG_TEXT, descriptions=["a"])), ["97 tokens", "plank"]),
        "one text of two classes but for blanks": (lambda p: p.texts(cat="a  Tail", dog="a tail"), ["'dog'", "another class"]),
        "escapes in a text": (lambda p: p.texts(cat="\x1b]0;x\x07 tail " * 40), ["d.json", "tokens"]),
        "escapes in a key": (lambda p: p.texts(**{"\x1b[31mred": "a"}), ["not in the data", "red"]),
        "a link to itself": (lambda p: (Path(p.root / "d.json").symlink_to("d.json"), p.run(descriptions=p.root / "d.json"))[1],
            ["d.json"]),
    },
    "folder": {
        "train is a file": (lambda p: p.folder(damage=lambda b: (shutil.rmtree(b / "train"), (b / "train").write_text("x"))),
            ["train", "<class>"]),
        "images without class folders": (
            lambda p: p.data("folder", "pools.json", make=lambda b: pictures(b, "train/a.png", "val/b.png")),
            ["no validation images"]),
        "no val": (lambda p: p.folder(damage=lambda b: shutil.rmtree(b / "val")), ["val", "No such file"]),
        "val without classes": (lambda p: p.folder(damage=lambda b: (shutil.rmtree(b / "val"), (b / "val").mkdir())),
            ["no validation images"]),
        "classes that differ in capitals": (
            lambda p: p.folder("train/Ski/x.png", words={"ski": "a", "Ski": "b", "swimming_pool": "c"}), ["'Ski' and 'ski'"]),
        "a class that cannot be said": (lambda p: p.folder("train/_/x.png"), ["no name"]),
        "a class that training lacks": (lambda p: p.folder("val/golf/x.png"), ["val/golf/x.png", "'golf'"]),
        "a domain of two lines": (lambda p: p.folder("a\nb/ski/x.png"), ["no name"]),
        "a domain that is a link upwards": (lambda p: p.folder(damage=lambda b: (b / "night").symlink_to("..")),
            ["night/", "label"]),
        "a description that is no image": (
            lambda p: p.folder(damage=lambda b: shutil.copy(p.world / "looks.json", b / "val/ski/x.png")), ["x.png", "no image"]),
        "an archive instead of a folder": (lambda p: p.run(data_root=p.write("x.zip", "PK")), ["x.zip", "Not a directory"]),
        "a root longer than a path may be": (lambda p: p.run(data_root=p.root / ("n" * 300)), ["--data-root", "nnn"]),
        "one class alone to train on": (lambda p: p.folder(words={"ski": "a"}, damage=lambda b: [
            shutil.rmtree(b / part / "swimming_pool") for part in ("train", "val")]) + ["--method", "erm"], ["one class"]),
        "escapes in the name of a class": (
            lambda p: p.folder("train/\x1b[31m/a.png", words=PIECES["pools.json"] | {"\x1b[31m": "x"}), ["name"]),
    },
    "csv": {
        "a path upwards": (lambda p: p.csv("../outside.png,ski,test,x", damage=lambda b: pictures(b.parent, "outside.png")),
            ["../outside.png"]),
        "an absolute path": (
            lambda p: p.csv(f"{p.root}/outside.png,ski,test,x", damage=lambda b: pictures(b.parent, "outside.png")),
            ["outside.png"]),
        "a path upwards that is not there": (lambda p: p.csv("../../../gone.png,ski,test,x"), ["gone.png"]),
        "a byte of nothing in a path": (lambda p: p.csv("a\0.png,ski,test,x"), ["own.csv"]),
        "no path": (lambda p: p.csv(",ski,test,x"), ["is not there"]),
        "a folder for a path": (lambda p: p.csv(".,ski,test,x"), ["is not there"]),
        "a field of 140000 letters": (lambda p: p.csv("a.png,ski,test," + "x" * 140_000), ["own.csv", "field limit"]),
        "a quote that is never closed": (lambda p: p.csv('"a.png,ski,test,x'), ["own.csv", "row 7", "fewer fields"]),
        "more fields than the header": (lambda p: p.csv("a.png,ski,test,deep, blue sea"),
            ["own.csv", "row 7"]),
        "semicolons": (lambda p: p.csv(header="path;label;split", only=True), ["no column path, label, split", "path;label;split"]),
        "UTF-16": (lambda p: p.csv(damage=lambda b: (b / "own.csv").write_text("path,label,split\n", encoding="utf-16")),
            ["own.csv", "UTF-8"]),
        "an image instead": (lambda p: p.csv(damage=lambda b: shutil.copy(b / "a.png", b / "own.csv")), ["own.csv", "UTF-8"]),
        "a folder instead": (lambda p: p.csv(damage=lambda b: ((b / "own.csv").unlink(), (b / "own.csv").mkdir())),
            ["own.csv", "directory"]),
        "an empty file": (lambda p: p.csv(damage=lambda b: (b / "own.csv").write_bytes(b"")), ["own.csv", "no column"]),
        "a header alone": (lambda p: p.csv(only=True), ["no validation images"]),
        "no training rows": (lambda p: p.csv("c.png,tent,val,x", only=True), ["c.png", "'tent'"]),
        "no label": (lambda p: p.csv("a.png,,train,x"), ["no name"]),
        "a label longer than the context": (
            lambda p: p.csv(f"a.png,{LONG_TEXT},train,x", words={"ski": "a", "tent": "b", LONG_TEXT: "c"}), ["97 tokens"]),
        "labels that differ in capitals": (lambda p: p.csv("a.png,Ski,train,x", words={"ski": "a", "tent": "b", "Ski": "c"}),
            ["'Ski' and 'ski'"]),
        "a label of two lines in a test": (lambda p: p.csv('a.png,"sk\ni",test,x'), [r"'sk\ni'", "ski, tent"]),
        "capitals in a split": (lambda p: p.csv("a.png,ski,Train,x"), ["a.png", "'Train'", "train, val, test"]),
        "escapes in a split": (lambda p: p.csv("a.png,ski,\x1b[31m,x"), ["a.png", "allowed"]),
        "escapes in a domain": (lambda p: p.csv("a.png,ski,test,\x1b[31m"), ["no name"]),
        "escapes in a label": (lambda p: p.csv("a.png,\x1b[31m,train,x", words=PIECES["words.json"] | {"\x1b[31m": "x"}),
            ["name"]),
    },
    "waterbirds": {
        "a third bird": (lambda p: p.birds("5,a.png,2,2,0"), ["a.png", "y 2"]),
        "no place": (lambda p: p.birds("5,a.png,1,2,"), ["a.png", "place"]),
        "other columns": (lambda p: p.birds(header="a,b,c,d,e"), ["no column img_filename"]),
        "splits that are none": (lambda p: p.birds("0,a.png,0,7,0", only=True), ["no validation images"]),
        "an image that is not there": (lambda p: p.birds("5,gone.png,1,2,0"), ["gone.png", "ood"]),
        "a folder for the table": (
            lambda p: p.birds(damage=lambda b: ((b / "waterbirds_v1.0/metadata.csv").unlink(),
                (b / "waterbirds_v1.0/metadata.csv").mkdir())),
                                   ["metadata.csv", "directory"]),
        "a path upwards": (lambda p: p.birds("5,../outside.png,1,2,0"), ["../outside.png"]),
    },
    "iwildcam": {
        "a y of 5000 digits": (lambda p: p.cameras("categories.csv", "9" * 5000 + ",1,x"),
            ["categories.csv"]),
        "a y that is no number": (lambda p: p.cameras("categories.csv", "x,1,other"), ["categories.csv", "no whole number"]),
        "a y that comes twice": (lambda p: p.cameras("categories.csv", "3,3,other"),
            ["categories.csv", "3"]),
        "a y without a category": (lambda p: p.cameras("metadata.csv", "11,test,3,77,a.jpg"), ["'77'"]),
        "a category without a name": (lambda p: p.cameras("categories.csv", "11,3,"), ["no name"]),
        "no categories": (lambda p: p.cameras(damage=lambda b: (b / "categories.csv").unlink()),
            ["categories.csv", "No such file"]),
        "no images": (lambda p: p.cameras(damage=lambda b: shutil.rmtree(b / "train")), ["a.jpg is not there"]),
        "a path upwards": (lambda p: p.cameras("metadata.csv", "11,test,3,2,../../outside.jpg"), ["../../outside.jpg"]),
    },
    "fmow": {
        "a year cut short": (lambda p: p.satellite("test,zoo,USA,201"), ["row 18", "'201'"]),
        "a year before Christ": (lambda p: p.satellite("test,zoo,USA,-201-01-01"), ["row 18", "'-201-01-01'"]),
        "no timestamp": (lambda p: p.satellite("test,zoo,USA,"), ["row 18", "''"]),
        "fields too few": (lambda p: p.satellite("test,zoo"), ["row 18", "fewer fields"]),
        "a row without an image": (lambda p: p.satellite("test,zoo,USA,2017-01-01"), ["rgb_img_17.png is not there"]),
        "an image that is gone": (lambda p: p.satellite(damage=lambda b: (b / "images/rgb_img_8.png").unlink()),
            ["rgb_img_8.png is not there"]),
        "no regions": (lambda p: p.satellite(damage=lambda b: (b / "country_code_mapping.csv").write_text("x,y\n")),
            ["no column alpha-3, region"]),
    },
    "imagenet": {
        "a class 1000 in V2": (lambda p: p.imagenet("imagenetv2-matched-frequency-format-val/1000/x.jpeg"), ["'1000'", "v2"]),
        "names for numbers in V2": (lambda p: p.imagenet("imagenetv2-matched-frequency-format-val/tench/x.jpeg"),
            ["'tench'", "v2"]),
        "names for wnids": (lambda p: p.imagenet("sketch/tench/x.jpeg"), ["'tench'", "sketch", "n01440764"]),
        "a wnid that is none": (lambda p: p.imagenet("imagenet/val/n99999999/x.jpeg"), ["'n99999999'", "val"]),
        "no val": (lambda p: p.imagenet(damage=lambda b: shutil.rmtree(b / "imagenet/val")), ["imagenet/val", "No such file"]),
        "val as it comes out of the archive": (lambda p: p.imagenet(damage=lambda b: (
            shutil.rmtree(b / "imagenet/val"), pictures(b, "imagenet/val/ILSVRC2012_val_00000001.JPEG"))), ["no validation images"]),
        "ObjectNet without its mappings": (lambda p: p.imagenet("objectnet-1.0/images/chair/x.png"), ["mappings", "No such file"]),
        "ObjectNet with mappings of 100000 brackets": (lambda p: p.imagenet("objectnet-1.0/images/chair/x.png", damage=lambda b: [
            p.write(b / "objectnet-1.0/mappings" / name, NEST) for name in (
                "folder_to_objectnet_label.json", "objectnet_to_imagenet_1k.json", "pytorch_to_imagenet_2012_id.json",
                "imagenet_to_label_2012_v2")]),
            ["mappings", "not ObjectNet's"]),
    },
    "cifar10": {
        "nothing there and no network": (lambda p: p.cifar(lambda b: None), ["--data-root", "no route"]),
        "a file for the folder": (lambda p: p.cifar(lambda b: (b.rmdir(), b.write_text("x"))), ["--data-root", "CIFAR-10"]),
        "an archive that is damaged": (lambda p: p.cifar(lambda b: (b / "cifar-10-python.tar.gz").write_bytes(b"x")),
            ["--data-root", "no route"]),
    },
    "images": {
        "a bomb of 3.6 thousand million pixels": (lambda p: p.image(png(60_000, 60_000)), ["x.png", "bomb"]),
        "a size that overflows": (lambda p: p.image(png(2**31 - 1, 2**31 - 1)), ["x.png", "no image"]),
        "no size": (lambda p: p.image(png(0, 0)), ["x.png", "no image"]),
        "pixels that do not come": (lambda p: p.image(png(64, 64)), ["x.png", "no image"]),
        "a strip": (lambda p: p.image(png(4000, 1, b"\0" * 4001)), ["x.png", "no picture"]),
        "a drawing in XML": (lambda p: p.image(b'<svg xmlns="http://www.w3.org/2000/svg"/>'), ["x.png", "no image"]),
        "the page of an error 404": (lambda p: p.image(b"<html>404</html>"), ["x.png", "no image"]),
        "a pointer of Git LFS": (lambda p: p.image(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"),
            ["x.png", "no image"]),
        "a TIFF that ends after its header": (lambda p: p.image(b"II*\0\x08\0\0\0"), ["x.png", "no image"]),
        "a TIFF whose directory is itself": (lambda p: p.image(b"II*\0\x08\0\0\0\0\0\x08\0\0\0"), ["x.png", "no image"]),
        "a GIF without a picture": (lambda p: p.image(b"GIF89a\xff\xff\xff\xff\0\0\0;"), ["x.png", "no image"]),
        "a JPEG of its first marker": (lambda p: p.image(b"\xff\xd8\xff\xe0"), ["x.png", "no image"]),
        "a BMP of negative size": (
            lambda p: p.image(b"BM" + struct.pack("<IHHIIiiHHIIIIII", 54, 0, 0, 54, 40, -5, -5, 1, 24, 0, 0, 0, 0, 0, 0)),
            ["x.png", "no image"]),
        "a pipe": (lambda p: p.image(os.mkfifo), ["x.png is not there"]),
        "a device": (lambda p: p.image(lambda path: path.symlink_to("/dev/zero")), ["x.png is not there"]),
        "a link to itself": (lambda p: p.image(lambda path: path.symlink_to(path)), ["x.png is not there"]),
    },
    "weights": {
        "an empty file": (lambda p: p.model(None, weights=b""), ["--model", "cannot load"]),
        "a header longer than the file": (lambda p: p.model(None, weights=b"\xff" * 8 + b"{}"), ["--model", "header"]),
        "a header of brackets": (lambda p: p.model(None, weights=struct.pack("<Q", 100_000) + NEST.encode()),
            ["--model", "header"]),
        "tensors too few": (
            lambda p: p.model(None, weights=dict(list(weights(p.world / "vit").items())[:5])), ["--model", "Missing key"]),
        "no tensors": (lambda p: p.model(None, weights={}), ["--model", "cannot load"]),
        "weights that are no numbers": (lambda p: p.spoilt(float("nan")), ["--model"]),
        "weights that are no numbers, in training": (lambda p: p.spoilt(float("nan"), "erm"),
            ["--model"]),
        "weights that are infinite": (lambda p: p.spoilt(float("inf")), ["--model"]),
        "a list for a config": (lambda p: p.model(None, config=[1]), ["--model", "cannot load"]),
        "a config of brackets": (lambda p: p.model(None, config=NEST), ["--model", "cannot load"]),
        "a config that is no text": (lambda p: p.model(None, config=b"\xff\xfe"), ["--model", "cannot load"]),
        "a config with a number for a model": (lambda p: p.config(model_cfg=3), ["--model", "cannot load"]),
        "a negative width": (lambda p: p.config(model_cfg=VIT | dict(embed_dim=-1)), ["--model", "-1"]),
        "a width that no memory holds": (lambda p: p.config(model_cfg=VIT | dict(embed_dim=10**13)), ["--model", "memory"]),
        "a picture smaller than its patch": (
            lambda p: p.config(model_cfg=VIT | dict(vision_cfg=VIT["vision_cfg"] | dict(image_size=7))), ["--model"]),
        "a tower that nobody knows": (
            lambda p: p.config(model_cfg=VIT | dict(vision_cfg=dict(timm_model_name="nope", image_size=32))), ["--model", "nope"]),
        "a context of two tokens": (lambda p: p.config(model_cfg=VIT | dict(text_cfg=VIT["text_cfg"] | dict(context_length=2))),
            ["default prompts", "2 at most"]),
        "an unknown interpolation": (lambda p: p.config(preprocess_cfg=dict(interpolation="odd")),
            ["--model", "odd"]),
        "a text for a mean": (lambda p: p.config(preprocess_cfg=dict(mean="x")), ["--model"]),
        "QuickGELU of a third kind": (lambda p: p.model(None, drm='{"quick_gelu": "yes"}'), ["--model", "QuickGELU"]),
        "drm.json of brackets": (lambda p: p.model(None, drm=NEST), ["drm.json", "JSON"]),
        "a folder of weights": (lambda p: p.run(model=NAME, pretrained=p.root), ["--pretrained", NAME]),
        "an archive that is none": (lambda p: p.pretrained(b"PK\x03\x04", "w.npz"), ["--pretrained", "w.npz"]),
        "a state dict that holds itself": (lambda p: p.pretrained(self_holding()),
            ["--pretrained", "w.pt"]),
        "numbers for tensors": (lambda p: p.pretrained(dict.fromkeys(weights(p.world / "vit"), 3)), ["--pretrained", "w.pt"]),
        "an archive without its end": (lambda p: p.pretrained(io_bytes(weights(p.world / "vit"))[:-1000]),
            ["--pretrained", "w.pt"]),
        "garbage that is called safetensors": (lambda p: p.pretrained(b"x", "w.safetensors"), ["--pretrained", "w.safetensors"]),
        "tensors without values": (lambda p: p.pretrained({k: v.to("meta") for k, v in weights(p.world / "vit").items()}),
            ["--model", NAME]),
    },
    "--resume": {
        "no losses": (lambda p: p.resume(losses=None), ["step-3", "damaged"]),
        "losses of fewer steps": (lambda p: p.resume(losses=[]),
            ["step-3"]),
        "losses of more steps": (lambda p: p.resume(losses=[0.1] * 50), ["step-3"]),
        "a text for losses": (lambda p: p.resume(losses="abc"), ["step-3"]),
        "a number for the best": (lambda p: p.resume(best=3), ["step-3", "damaged"]),
        "a text for the best epoch": (lambda p: p.resume(best=dict(score=0.1, epoch="x")), ["step-3", "damaged", "'x'"]),
        "no prompts": (lambda p: p.resume(prompts=None), ["step-3", "prompts"]),
        "a list for the recipe": (lambda p: p.resume(recipe=[]), ["step-3", "another dataset, model"]),
        "drm.json of brackets": (lambda p: p.resume(lambda s: (s / "drm.json").write_text(NEST)), ["drm.json", "JSON"]),
        "drm.json that is no text": (lambda p: p.resume(lambda s: (s / "drm.json").write_bytes(b"\xff")), ["drm.json", "JSON"]),
        "a number of 5000 digits": (lambda p: p.resume(lambda s: (s / "drm.json").write_text('{"a": ' + "9" * 5000 + "}")),
            ["drm.json", "JSON"]),
        "a folder for drm.json": (lambda p: p.resume(lambda s: ((s / "drm.json").unlink(), (s / "drm.json").mkdir())),
            ["drm.json"]),
        "an optimizer of another shape": (
            lambda p: p.resume(tensors=("optimizer.safetensors", lambda t: {k: torch.zeros(3) for k in t})),
                                          ["step-3"]),
        "an optimizer of no step": (lambda p: p.resume(tensors=("optimizer.safetensors", lambda t: {})),
            ["step-3"]),
        "an optimizer of other names": (
            lambda p: p.resume(tensors=("optimizer.safetensors", lambda t: {"a.b.c": torch.zeros(2)})), ["step-3", "damaged"]),
        "an optimizer without its steps": (
            lambda p: p.resume(tensors=("optimizer.safetensors", lambda t: {k: v for k, v in t.items() if ".step" not in k})),
            ["step-3", "damaged"]),
        "best weights of another model": (lambda p: p.resume(tensors=("best.safetensors", lambda t: dict(list(t.items())[:4]))),
                                          ["step-3"]),
        "weights of another shape": (
            lambda p: p.resume(tensors=("open_clip_model.safetensors", lambda t: {k: torch.zeros(2) for k in t})),
                                     ["step-3", "damaged"]),
        "a checkpoint without files": (lambda p: p.resume(lambda s: s.with_name("step-7").mkdir()), ["step-7", "drm.json"]),
    },
    "--eval-only": {
        "a seed between two numbers": (
            lambda p: p.evaluate(dict(method="drm", beta=0.5, lam=1.0, seed=0.5, prompts=PROMPTS), "toy"),
                                       ["drm.json"]),
        "a beta that is no number": (lambda p: p.evaluate(beta=float("nan")), ["drm.json"]),
        "a beta that is true": (lambda p: p.evaluate(beta=True), ["drm.json"]),
        "a lambda of 400 digits": (lambda p: p.evaluate(lam=10**400), ["drm.json"]),
        "a number of 5000 digits": (lambda p: p.evaluate('{"seed": ' + "9" * 5000 + "}"), ["drm.json", "JSON"]),
        "drm.json of brackets": (lambda p: p.evaluate(NEST), ["drm.json", "JSON"]),
        "UTF-16": (lambda p: p.evaluate("{}".encode("utf-16")), ["drm.json", "JSON"]),
        "prompts of other classes": (lambda p: p.evaluate(prompts={head: {"yak": ["yak"]} for head in PROMPTS}), ["other classes"]),
        "default prompts longer than the context": (
            lambda p: p.evaluate(prompts=PROMPTS | dict(default={c: [LONG_TEXT] for c in CLASSES})), ["92 tokens"]),
        "concept prompts longer than the context": (
            lambda p: p.evaluate(prompts=PROMPTS | dict(concept={c: [LONG_TEXT] for c in CLASSES})),
                                                    ["92 tokens", "--model"]),
        "a file for the folder": (lambda p: p.evaluate()[:-3] + [f"local-dir:{p.write('m', 'x')}", "--out", str(p.out)],
            ["drm.json"]),
    },
}
# Those of describe.py: the builder returns its command line. Exit code 1 where --check finds something.
FAULTS_OF_DESCRIBE = {
    "describe.py": {
        "two commands in one": (lambda p: ["--llm", "x", "--check", "y"], ["--check", "--llm"]),
        "no command": (lambda p: [], ["--llm", "--check", "--compare"]),
        "an option cut short": (lambda p: ["--che", "x"], ["--che"]),
        "classes that nobody named": (lambda p: ["--llm", "x"], ["--dataset", "--classes"]),
        "a data set that nobody has": (lambda p: ["--check", "x", "--dataset", "../toy/x"], ["--dataset", "../toy/x"]),
        "a data set longer than a name may be": (lambda p: ["--check", "x", "--dataset", "n" * 300],
            ["--dataset", "nnn"]),
        "a file longer than a name may be": (lambda p: ["--check", "n" * 300], ["nnn"]),
        "a time-out that is no number": (lambda p: [*p.llm, "--timeout", "nan"], ["--timeout", "nan"]),
        "a seed of 5000 digits": (lambda p: [*p.llm, "--seed", "9" * 5000], ["--seed", "999"]),
        "half a text a class": (lambda p: [*p.llm, "--per-class", "0.5"], ["--per-class", "0.5"]),
        "a style that nobody has": (lambda p: [*p.llm, "--style", "odd"], ["--style", "odd"]),
        "an endpoint on a disk": (
            lambda p: ["--llm", "x", *p.ids, "--base-url", "file:///etc/passwd", "--out", str(p.out / "new.json")],
                                  ["--base-url", "file:///etc/passwd"]),
        "check a folder": (lambda p: ["--check", str(p.root)], ["cannot be read"]),
        "check what is not there": (lambda p: ["--check", str(p.root / "no.json")], ["no.json"]),
        "compare with nothing": (lambda p: ["--compare", str(p.write("a.json", WRITTEN)), str(p.root / "no.json")], ["no.json"]),
        "compare one class": (lambda p: ["--compare", *[str(p.write("a.json", {"a": "b"}))] * 2], ["1 classes"]),
        "compare a list": (lambda p: ["--compare", *[str(p.write("a.json", ["a", "b"]))] * 2], ["no classes"]),
        "compare where a name is a list": (
            lambda p: ["--compare", *[str(p.write("a.json", {"a": dict(name=["x"], descriptions=["t"]), "b": "u"}))] * 2],
                                           ["a.json"]),
        "classes of which a name is a list": (
            lambda p: ["--check", str(p.write("a.json", WRITTEN)), "--classes", str(p.write("c", {"a": dict(name=["x"]), "b": "u"}))],
                                              ["/c"]),
        "a class with a blank name": (lambda p: [
            "--check", str(p.write("a.json", WRITTEN)), "--classes", str(p.write("c", {"a": " ", "b": "u"}))], ["/c", "allowed: a text"]),
        "classes that are numbers": (lambda p: ["--check", str(p.write("a.json", WRITTEN)), "--classes", str(p.write("c", [1, 2]))],
            ["/c"]),
        "classes of which one is null": (
            lambda p: ["--check", str(p.write("a.json", WRITTEN)), "--classes", str(p.write("c", [None, "a"]))], ["/c"]),
        "classes that are lists": (lambda p: ["--check", "x", "--classes", str(p.write("c", [["a"], "b"]))],
            ["/c", "no JSON of classes"]),
        "classes of brackets": (lambda p: ["--check", "x", "--classes", str(p.write("c", NEST))], ["/c", "no JSON of classes"]),
        "classes of 5000 digits": (lambda p: ["--check", "x", "--classes", str(p.write("c", "[" + "9" * 5000 + "]"))],
            ["/c", "no JSON of classes"]),
        "NaN twice for a class": (lambda p: ["--check", "x", "--classes", str(p.write("c", "[NaN, NaN]"))], ["/c", "nan"]),
        "write where there is no folder": (lambda p: [*p.llm, "--out", str(p.out / "no/such.json")], ["--out", "such.json"]),
        "write over a folder": (lambda p: [*p.llm, "--out", str(p.out)], ["--out", "another file"]),
        "write over half a file": (lambda p: [*p.llm, "--out", str(p.write("out/half.json", '{"classes":'))], ["half.json"]),
        "write over what is no text": (lambda p: [*p.llm, "--out", str(p.write("out/bytes.json", b"\xff"))], ["bytes.json"]),
        "write over 5000 digits": (lambda p: [*p.llm, "--out", str(p.write("out/digits.json", '{"classes":' + "9" * 5000))],
            ["digits.json"]),
        "write over brackets": (lambda p: [*p.llm, "--out", str(p.write("out/nest.json", NEST))], ["nest.json"]),
        "write to a name longer than may be": (lambda p: [*p.llm, "--out", str(p.out / ("n" * 300))],
            ["--out", "nnn"]),
    },
    "describe.py --check": {
        "no class at all": (lambda p: ["--check", str(p.write("d.json", {}))], ["stop"]),
        "a number of 5000 digits": (lambda p: ["--check", str(p.write("d.json", '{"a":' + "9" * 5000 + "}"))], ["JSON", "4300"]),
        "10 MB of nesting": (lambda p: ["--check", str(p.write("d.json", '{"a":' * 2_000_000))], ["JSON", "recursion"]),
        "nesting for texts": (lambda p: ["--check", str(p.write("d.json", '{"a":' + "[" * 500 + "]" * 500 + ',"b":"x"}'))],
            ["no texts", "| a |"]),
        "a name that training would refuse": (
            lambda p: ["--check", str(p.write("d.json", WRITTEN | {"0": dict(name="", descriptions=["x"])})), *p.ids],
                                              ["stop", "| 0 |"]),
        "escapes in a key": (lambda p: ["--check", str(p.write("d.json", WRITTEN | {"\x1b[31m": "crane"})), *p.ids],
            ["extra"]),
        "a bar in a key": (lambda p: ["--check", str(p.write("d.json", WRITTEN | {"a|b": "crane"})), *p.ids], ["extra", "a\\|b"]),
        "a class by its key and by its name": (
            lambda p: ["--check", str(p.write("d.json", WRITTEN | {"0": dict(name="bird", descriptions=["x"]), "crane": "y"})), *p.ids],
            ["stop", "refused", "'0' repeated"]),
        "a key of two lines": (lambda p: ["--check", str(p.write("d.json", WRITTEN | {"a\nb": "crane"})), *p.ids],
            ["| extra | a"]),
    },
}
# What a server says to every request; the classes that are on disk already stay, and no half answer is added.
ANSWERS = {
    "10 KB of nesting": (says('{"1":' * 2000), ["no usable texts for 1, 2"]),
    "a number of 5000 digits": (says('{"1": ' + "9" * 5000 + "}"), ["no usable texts"]),
    "nothing": (says(""), ["no usable texts"]),
    "a list": (says('["a", "b"]'), ["no usable texts"]),
    "other ids": (says({"one": ["a", "b"]}), ["no usable texts"]),
    "objects for texts": (says({"1": [{"text": "a"}, {"text": "b"}]}), ["no usable texts"]),
    "blanks": (says({"1": [" ", "\t"]}), ["no usable texts"]),
    "texts of 60 words": (says({"1": ["word " * 60, "word " * 61]}), ["no usable texts"]),
    "half a character": (says('{"1": ["\\ud83d a", "b"]}'), ["no usable texts"]),
    "NaN for a text": (says('{"1": ["a", NaN]}'), ["no usable texts"]),
    "a refusal in prose": (says("I cannot help with {that}."), ["no usable texts"]),
    "choices of null": (says("", choices=None), ["no usable texts"]),
    "a text for choices": (says("", choices="x"), ["after 6 requests"]),
    "a number for a body": (reply(b"33"), ["after 6 requests"]),
    "a body of blanks": (reply(b"  "), ["after 6 requests"]),
    "a page of HTML": (reply(b"<html>\x1b[31m login </html>"), ["after 6 requests"]),
    "a body of brackets": (reply(NEST.encode()), ["after 6 requests"]),
    "a status 404": (reply(b"{}", 404), ["status 404"]),
    "a status 418": (reply(b"{}", 418), ["status 418"]),
    "a status 503": (reply(b"{}", 503), ["after 6 requests"]),
}


def io_bytes(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def entries(faults):
    """(area, name, builder, words) of each fault."""
    return [pytest.param(area, name, *given, id=f"{area}: {name}") for area, some in faults.items() for name, given in some.items()]


TRIED, SURVIVED = {}, {}


def count(area, into):
    into[area] = into.get(area, 0) + 1


def one_line(program, captured, said):
    """The last line of stderr is the only one of the program's, printable, and holds these words."""
    lines = captured.err.splitlines()
    own = [line for line in lines if line.startswith(f"{program}: ")]
    assert len(own) == 1 and lines[-1] == own[0] and "Traceback" not in captured.err, captured.err[-2000:]
    assert own[0].isprintable(), own
    for word in said:
        assert word in own[0], own


@pytest.fixture
def place(tmp_path, world, stopped, monkeypatch):  # noqa: F811
    return Place(tmp_path, world, stopped, monkeypatch)


@pytest.mark.parametrize("area, name, build, said", entries(FAULTS))
def test_bad_input_ends_in_one_line_and_costs_nothing(place, capfd, area, name, build, said):
    if area == "images" and name == "a pipe" and not hasattr(os, "mkfifo"):
        pytest.skip("no pipes here")
    count(area, TRIED)
    command = build(place)
    before = contents(place.out)
    capfd.readouterr()
    with within(8):
        code = drm_min.main(command)
    captured = capfd.readouterr()
    assert code == 2 and captured.out == ""
    one_line("drm_min.py", captured, said)
    assert contents(place.out) == before
    count(area, SURVIVED)


@pytest.mark.parametrize("area, name, build, said", entries(FAULTS_OF_DESCRIBE))
def test_bad_input_of_describe_ends_in_one_line_and_costs_nothing(place, capfd, monkeypatch, area, name, build, said):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(describe.Llm, "ask", lambda *_: pytest.fail("a request was sent"))
    count(area, TRIED)
    command = build(place)
    before = contents(place.out)
    with within(8):
        code = describe.main(command)
    captured = capfd.readouterr()
    if "--check" in area:
        assert code == 1 and captured.err == "" and "1 faults that" in captured.out.splitlines()[-1]
        assert all(word in captured.out for word in said) and captured.out.replace("\n", "").isprintable()
        assert all(line.startswith(("| ", "|  |", str(place.root))) for line in captured.out.splitlines()), captured.out
    else:
        assert code == 2 and captured.out == ""
        one_line("describe.py", captured, said)
    assert contents(place.out) == before
    count(area, SURVIVED)


@pytest.mark.parametrize("what", ANSWERS)
def test_bad_answers_end_in_one_line_and_cost_no_answer_that_was_paid_for(stub, capfd, what):  # noqa: F811
    count("LLM answers", TRIED)
    stub.handle_error = lambda *_: None  # connections that the client gives up
    stub.script = [lambda ids: says({"0": ALL["0"]})] + [reply(b"{}", 404)]
    assert stub.generate("--batch", "1") == 2 and list(stub.written()) == ["0"]
    before, (order, said) = stub.out.read_bytes(), ANSWERS[what]
    stub.script = [order] * 50
    capfd.readouterr()
    with within(10):
        assert stub.generate() == 2
    captured = capfd.readouterr()
    one_line("describe.py", captured, ["writer", *said])
    assert stub.out.read_bytes() == before and KEY not in captured.err and "without end" not in stub.waits
    count("LLM answers", SURVIVED)


def test_bad_input_in_processes_of_their_own(place):
    """As a shell sees it: the code, one line, and nothing on standard output."""
    commands = [("drm_min.py", place.run("--lam", "-1"), "--lam -1"), ("describe.py", ["--llm", "x", "--timeout", "0"], "--timeout"),
                ("describe.py", ["--check", str(place.root / "no.json")], "no.json")]
    before = contents(place.out)
    for program, words, said in commands:
        count("processes", TRIED)
        done = subprocess.run([sys.executable, describe.ROOT / program, *words], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1) and done.stderr.startswith(f"{program}: ")
        assert said in done.stderr and contents(place.out) == before
        count("processes", SURVIVED)


# ----------------------------------------------------------------------------------------------------- kills and signals

WRITER = """
import os, pathlib, random, shutil, sys, time, torch, files

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.visual = torch.nn.Parameter(torch.zeros(256, 512)), torch.nn.Identity()
        self.source, self.visual.image_size = dict(model_cfg=dict(quick_gelu=False)), 32

class Scaler:
    state_dict, load_state_dict = lambda self: {}, lambda self, state: None

def load(resume=True):
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters())
    keep = files.Checkpoints(folder, None, dict(recipe={}, prompts={}), resume)
    return model, optimizer, keep, *keep.load(model, optimizer, Scaler())

def fill(model, optimizer, n):  # every number of checkpoint n is n, so that a mixture of two would show
    model.weight.data.fill_(n)
    moment = torch.full_like(model.weight, n)
    optimizer.state[model.weight] = dict(step=torch.tensor(float(n)), exp_avg=moment, exp_avg_sq=moment.clone())

folder, chance, said, amid = pathlib.Path(sys.argv[1]), random.Random(0), 0, 0
folder.mkdir()
for kill in range(50):
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        model, optimizer, keep, losses, best = load()
        n = len(losses)
        while True:
            n += 1
            fill(model, optimizer, n)
            state = {k: v.clone() for k, v in model.state_dict().items()}
            keep.save(model, optimizer, Scaler(), [float(n)] * n, dict(score=1.0, epoch=n, state=state))
            if n % 5 == 0:
                keep.finish(model, [float(n)] * n)
            os.write(writer, n.to_bytes(4, "little"))
    os.close(writer)
    said = int.from_bytes(os.read(reader, 4), "little")  # the first one is there; then at any moment
    time.sleep(chance.uniform(0, 0.03))
    os.kill(child, 9)
    os.waitpid(child, 0)
    while more := os.read(reader, 4):
        said = int.from_bytes(more, "little")
    os.close(reader)
    amid += any(p.suffix in (".tmp", ".old") for p in folder.iterdir())
    model, optimizer, keep, losses, best = load()
    n, state = len(losses), optimizer.state.get(model.weight, {})
    assert n >= said > 0, (n, said)
    assert losses == [float(n)] * n and model.weight.eq(n).all()
    if not keep.finished:
        assert best["epoch"] == n and best["state"]["weight"].eq(n).all()
        assert len(state) == 3 and all(v.eq(n).all() for v in state.values())
print(n, amid)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_the_newest_complete_checkpoint_loads_after_each_of_fifty_kills_amid_writing(tmp_path):
    """A child does nothing but save and finish, and says each that is complete; what loads is that one or a newer one, whole."""
    done = subprocess.run([sys.executable, "-c", WRITER, tmp_path / "c"], cwd=describe.ROOT, capture_output=True, text=True,
                          env=os.environ | dict(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES=""))
    assert done.returncode == 0, done.stderr[-2000:]
    n, amid = map(int, done.stdout.split())
    assert n >= 50 and amid >= 10, "kills hit the writing itself"
    TRIED["kills"] = SURVIVED["kills"] = 50


def again(out, world, **more):  # noqa: F811
    """The stopped run goes on to its end; whether its weights are those of a run that nothing happened to."""
    run(out, world, resume=True, **more)
    return weights(out / DRM / "model")


def amid_saving(monkeypatch, at, fault):
    """fault() comes when the given tensors file begins to be written."""
    save = files.save_file

    def faulty(tensors, path):
        if at in str(path):
            fault()
        save(tensors, path)

    monkeypatch.setattr(files, "save_file", faulty)


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("second", ["in the same step", "while the checkpoint is written", "while it is put in its place"])
def test_ctrl_c_twice_leaves_the_checkpoint_whole(world, tmp_path, monkeypatch, capsys, second):  # noqa: F811
    """The first stops the run at the end of the step; until its checkpoint is there, a second one changes nothing."""
    count("signals", TRIED)
    with monkeypatch.context() as patch:
        if "written" in second:
            amid_saving(patch, "step-3.tmp/optimizer", interrupt)
        elif "place" in second:
            replace = os.replace
            patch.setattr(os, "replace", lambda *args: (interrupt(), replace(*args)))
        else:
            loss = drm_min.dual_loss
            patch.setattr(drm_min, "dual_loss", lambda *args: (taken.append(1), len(taken) == 3 and interrupt(), loss(*args))[2])
        taken = []
        assert stop_at(tmp_path / "out", 3, world, by=signal.SIGINT) == 130
    assert "--resume" in capsys.readouterr().err and [p.name for p in (tmp_path / "out" / DRM).iterdir()] == ["step-3"]
    run(tmp_path / "whole", world)
    assert equal(again(tmp_path / "out", world), weights(tmp_path / "whole" / DRM / "model"))
    count("signals", SURVIVED)


def test_ctrl_c_while_the_finished_model_is_written_costs_no_training(world, tmp_path, monkeypatch):  # noqa: F811
    count("signals", TRIED)
    with monkeypatch.context() as patch:
        amid_saving(patch, "model.tmp", interrupt)
        assert drm_min.main(argv(tmp_path / "out", world)) in (0, 130)
    run(tmp_path / "whole", world)
    assert equal(weights(next((tmp_path / "out" / DRM).glob("[ms]*"))), weights(tmp_path / "whole" / DRM / "model"))
    count("signals", SURVIVED)


# ----------------------------------------------------------------------------------------------------------- full and gone

@contextlib.contextmanager
def largest_file(size):
    """Writing beyond `size` bytes fails, as on a full disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [100_000, 4_000_000])
def test_a_full_disk_costs_no_checkpoint_and_the_run_goes_on_when_there_is_room(place, world, capfd, size):  # noqa: F811
    """It is full in the weights, or after them in the optimizer."""
    count("disk", TRIED)
    command = place.resume() + ["--save-every", "1"]
    before = contents(place.out)
    with largest_file(size):
        assert drm_min.main(command) == 2
    one_line("drm_min.py", capfd.readouterr(), [str(place.out), "cannot be written"])
    after = contents(place.out)
    assert all(after[name] == before[name] for name in before) and all(".tmp" in name for name in after.keys() - before.keys())
    run(place.root / "whole", world, select="best")
    assert equal(again(place.out, world, select="best"), weights(place.root / "whole" / DRM / "model"))
    count("disk", SURVIVED)


@pytest.mark.parametrize("size, file", [(3000, "results.json"), (10_000, "tradeoff.png")])
def test_a_full_disk_costs_no_older_result(place, capfd, size, file):
    count("disk", TRIED)
    with largest_file(size):
        assert drm_min.main(place.run()) == 2
    one_line("drm_min.py", capfd.readouterr(), [file, "cannot be written", "still there"])
    assert (place.out / file).read_text() == f"old {file}"
    count("disk", SURVIVED)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_standard_output_that_is_full_is_said_in_one_line(place, capfd, monkeypatch):
    count("disk", TRIED)
    full = open("/dev/full", "w")
    with contextlib.ExitStack() as stack, monkeypatch.context() as patch:
        stack.enter_context(contextlib.suppress(OSError))  # of close(), which writes once more
        stack.callback(full.close)
        patch.setattr(sys, "stdout", full)
        assert drm_min.main(place.run()) == 2
    one_line("drm_min.py", capfd.readouterr(), ["output"])
    count("disk", SURVIVED)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_full_disk_under_the_raw_answers_is_said_in_one_line(stub, capfd):  # noqa: F811
    count("disk", TRIED)
    (stub.folder / "o.json.raw.jsonl").symlink_to("/dev/full")
    assert stub.generate() == 2
    one_line("describe.py", capfd.readouterr(), ["o.json.raw.jsonl"])
    count("disk", SURVIVED)


def test_an_output_folder_that_may_only_be_read_is_said_before_training(place, capfd, monkeypatch):
    """Permission binds no superuser; there it is a folder of the kernel's."""
    count("disk", TRIED)
    folder = place.root / "fixed"
    folder.mkdir()
    folder.chmod(0o555)
    if os.access(folder, os.W_OK):
        folder = Path("/proc/drm")
        if not folder.parent.is_dir():
            pytest.skip("every folder can be written")
    monkeypatch.setattr(drm_min, "train", lambda *args: pytest.fail("training began"))
    command = argv(folder, place.world)
    assert drm_min.main(command) == 2
    one_line("drm_min.py", capfd.readouterr(), [f"--out {folder}", "cannot be written"])
    count("disk", SURVIVED)


@pytest.mark.parametrize("name", ["results.json", "tradeoff.png"])
def test_a_folder_that_is_called_like_a_result_is_not_removed(place, capfd, name):
    count("lost files", TRIED)
    (place.out / name).unlink()
    place.write(f"out/{name}/mine.txt", "mine")
    code = drm_min.main(place.run())
    assert (place.out / name / "mine.txt").read_text() == "mine" and code == 2
    one_line("drm_min.py", capfd.readouterr(), [name])
    count("lost files", SURVIVED)


def test_a_file_called_model_where_the_model_will_go_is_said_before_training(place, capfd, monkeypatch):
    count("lost files", TRIED)
    place.write(f"out/{DRM}/model", "mine")
    monkeypatch.setattr(drm_min, "train", lambda *args: pytest.fail("training began"))
    assert drm_min.main(place.run(method="drm")) == 2
    one_line("drm_min.py", capfd.readouterr(), ["model", "cannot be written"])
    count("lost files", SURVIVED)


class Step:
    """Something happens in each step from the second on."""

    def __init__(self, patch, happens):
        taken, take = [], torch.optim.AdamW.step
        patch.setattr(torch.optim.AdamW, "step", lambda *args: (taken.append(1), happens() if len(taken) > 1 else None, take(*args))[2])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_vanishes_is_named_and_the_run_goes_on_when_it_is_back(world, tmp_path, monkeypatch, capfd, workers):  # noqa: F811
    count("gone", TRIED)
    shutil.copytree(world / "data", tmp_path / "data")
    image, more = tmp_path / "data/train/cat/0.png", dict(data_root=str(tmp_path / "data"), save_every=1, epochs=6)
    with monkeypatch.context() as patch:
        Step(patch, lambda: image.unlink(missing_ok=True))
        assert drm_min.main(argv(tmp_path / "out", world, workers=workers, **more)) == 2
    one_line("drm_min.py", capfd.readouterr(), [str(image), "No such file"])
    shutil.copy(world / "data/train/cat/0.png", image)
    run(tmp_path / "whole", world, **more)
    assert equal(again(tmp_path / "out", world, **more), weights(tmp_path / "whole" / DRM / "model"))
    count("gone", SURVIVED)


def test_a_worker_that_dies_is_said_in_one_line_and_costs_no_checkpoint(world, tmp_path, monkeypatch, capfd):  # noqa: F811
    """As the kernel kills it where memory is short."""
    count("gone", TRIED)
    with monkeypatch.context() as patch:
        Step(patch, lambda: [os.kill(child.pid, signal.SIGKILL) for child in multiprocessing.active_children()])
        with within(20):
            assert drm_min.main(argv(tmp_path, world, workers=2, save_every=1, epochs=6)) == 2
    one_line("drm_min.py", capfd.readouterr(), ["--workers"])
    assert len([p for p in (tmp_path / DRM).iterdir() if p.suffix == ""]) == 1
    count("gone", SURVIVED)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_descriptions_from_a_pipe_are_read_once(world, tmp_path):  # noqa: F811
    """As a shell's <(command) gives them: a second reading waits without end, or finds nothing and says so to nobody."""
    count("gone", TRIED)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    child = subprocess.Popen(["sh", "-c", 'cat "$0" > "$1"', world / "looks.json", pipe])
    try:
        with within(3):
            report = run(tmp_path / "out", world, method="zero-shot", descriptions=str(pipe))
    finally:
        child.kill()
        child.wait()
    assert report["about"]["prompts_sha256"] == run(tmp_path / "out", world, method="zero-shot")["about"]["prompts_sha256"]
    count("gone", SURVIVED)


# ---------------------------------------------------------------------------------------------------------------- security

FORBIDDEN = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "subprocess", "pty", "code", "ctypes", "runpy"}
CALLS = {"eval", "exec", "compile", "__import__", "importlib.import_module", "os.system", "os.popen", "torch.jit.load", "torch.hub.load"}


def dangers(source):
    """By what a program could run foreign code, from its syntax tree: words in comments are no danger, model.eval() neither."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [name for name in names if name.split(".")[0] in FORBIDDEN]
        if isinstance(node, ast.Call):
            name, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            if name in CALLS or name.startswith(("os.exec", "os.spawn", "os.posix_spawn")):
                found.append(name)
            if name == "torch.load" and given.get("weights_only") != "True":
                found.append(name)
            found += [k for k in ("shell", "allow_pickle", "trust_remote_code") if given.get(k, "False") != "False"]
    return found


@pytest.mark.parametrize("name", ["drm_min.py", "files.py", "describe.py", "toy/world.py", "toy/pretrain.py"])
def test_nothing_is_unpickled_evaluated_or_given_to_a_shell(name):
    assert dangers((describe.ROOT / name).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("source", [
    "import pickle", "from pickle import loads", "import numpy, subprocess", "eval(x)", "exec('x')", "os.system(x)", "os.execv(a, b)",
    "torch.load(x)", "torch.load(x, weights_only=False)", "f(x, shell=True)", "numpy.load(x, allow_pickle=True)", "torch.jit.load(x)",
    "__import__('pickle')"])
def test_the_look_for_dangers_finds_them(source):
    assert dangers(source) and not dangers(f"'''{source}'''\nmodel.eval()\ntorch.load(x, weights_only=True)")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "model.pth", "pytorch_model.bin"])
@pytest.mark.parametrize("bare", [False, True])
def test_a_pickle_among_the_weights_of_a_folder_runs_no_code(place, capfd, name, bare):
    count("security", TRIED)
    made = place.root / "made"

    def lay(folder):
        (folder / name).write_bytes(pickle.dumps(Trap(made)) if bare else io_bytes(dict(state_dict=Trap(made))))

    command = place.model(lay, weights=None)
    assert drm_min.main(command) == 2 and not made.exists()
    captured = capfd.readouterr()
    assert captured.err.splitlines()[-1].startswith(f"drm_min.py: --model local-dir:{place.root / 'model'}: open_clip cannot load it")
    count("security", SURVIVED)


def test_a_pickle_beside_a_checkpoint_runs_no_code(place):
    count("security", TRIED)
    made = place.root / "made"
    command = place.resume(lambda step: [(step / name).write_bytes(pickle.dumps(Trap(made))) for name in (
        "optimizer.pt", "optimizer.bin", "open_clip_pytorch_model.bin", "best.safetensors", "scaler.pkl")])
    assert drm_min.main(command) == 2 and not made.exists()
    count("security", SURVIVED)


def test_a_batch_of_cifar10_with_another_checksum_is_not_unpickled(place, capfd):
    """torchvision unpickles the batches; it asks for their checksums first."""
    count("security", TRIED)
    made = place.root / "made"
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]
    command = place.cifar(lambda base: [place.write(base / "cifar-10-batches-py" / name, pickle.dumps(Trap(made))) for name in names])
    assert drm_min.main(command) == 2
    one_line("drm_min.py", capfd.readouterr(), ["--data-root", "no route"])
    assert not made.exists()
    count("security", SURVIVED)


def test_paths_in_drm_json_are_read_by_nobody(world, tmp_path):  # noqa: F811
    count("security", TRIED)
    shutil.copytree(world / "vit", tmp_path / "m")
    about = dict(method="drm", beta=0.5, lam=1.0, seed=0, prompts=PROMPTS, model="local-dir:/nowhere", out=str(tmp_path / "other"),
                 recipe=dict(model="local-dir:/nowhere", pretrained="/nowhere", data_root="/nowhere", descriptions="/nowhere"))
    (tmp_path / "m" / "drm.json").write_text(json.dumps(about))
    report = drm_min.run(evaluation(world, tmp_path / "m"), tmp_path / "out")
    assert report["about"]["model"] == f"local-dir:{tmp_path / 'm'}" and sorted(p.name for p in tmp_path.iterdir()) == ["m", "out"]
    count("security", SURVIVED)


def test_names_with_path_separators_leave_the_output_where_it_belongs(place, capfd):
    """Labels and domains of a CSV file are anybody's; folders are named after method, lambda and seed alone."""
    count("security", TRIED)
    names = {"../../up": "a", "/top": "b", "..": "c"}
    rows = [f"a.png,{name},{split},x" for name in names for split in ("train", "val")] + ["a.png,..,test,../../x", "b.png,..,test,/x/y"]
    command = place.csv(*rows, only=True, words=names) + ["--method", "erm", "--batch-size", "2"]
    before, inside = contents(place.root), {p for p in place.root.rglob("*") if p.is_dir()}
    assert drm_min.main(command) == 0
    assert "../../x" in json.loads((place.out / "results.json").read_text())["results"][0]["domains"]
    changed = [name for name, content in contents(place.root).items() if before.get(name) != content]
    assert all(name.startswith("out/") for name in changed), changed
    assert {p.name for p in {p for p in place.root.rglob("*") if p.is_dir()} - inside} <= {"erm-seed-0", "model"}
    count("security", SURVIVED)


def test_links_in_the_data_root_are_followed_as_their_owner_laid_them(place):
    """Data sets are often put together from links; who can lay one in the data root can as well lay the image there."""
    command = place.image(lambda path: path.symlink_to(pictures(place.root, "elsewhere.png") / "elsewhere.png"))
    assert drm_min.main(command) == 0


@pytest.mark.skipif(os.name != "posix", reason="a shell script stands in for Ghostscript")
def test_an_image_starts_no_other_program(place, monkeypatch):
    count("security", TRIED)
    made, program = place.root / "made", place.write("bin/gs", f"#!/bin/sh\ntouch {place.root}/made\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    from PIL import EpsImagePlugin
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # what was found out about another PATH
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    assert drm_min.main(place.image(eps)) == 2 and not made.exists()
    count("security", SURVIVED)


def test_ten_megabytes_of_an_answer_are_read_in_no_time(one_tokenizer):  # noqa: F811
    count("security", TRIED)
    with within(3):
        assert describe.parse_answer("[" * 10_000_000, ["a"], 1) == {} == describe.parse_answer("<think>" * 10**6, ["a"], 1)
    count("security", SURVIVED)


@pytest.mark.parametrize("answer", ['{"a":' * 200_000, ('{"a":' * 900 + "x ") * 222, '{"\\' * 300_000], ids=["deep", "less deep", "escapes"])
def test_an_answer_of_braces_is_given_up_at_once(one_tokenizer, answer):  # noqa: F811
    count("security", TRIED)
    with within(3):
        assert describe.parse_answer(answer, ["a"], 1) == {}
    count("security", SURVIVED)


@pytest.mark.parametrize("key", [f"{KEY}\nmore", f"{KEY}\r\nX: y", f"{KEY}\x1b[31m", f"Bearer {KEY}", f"'{KEY}\\\x01'"])
def test_a_key_that_is_no_header_is_in_no_message_and_no_file(stub, capfd, monkeypatch, key):  # noqa: F811
    count("API key", TRIED)
    monkeypatch.setenv("OPENAI_API_KEY", key)
    code = stub.generate()
    captured = capfd.readouterr()
    assert code in (0, 2) and KEY not in captured.out + captured.err
    assert not [path for path in stub.folder.iterdir() if KEY in path.read_text(encoding="utf-8")]
    count("API key", SURVIVED)


def test_a_key_is_not_sent_on_to_where_a_server_points(stub, tmp_path):  # noqa: F811
    count("API key", TRIED)
    (tmp_path / "other").mkdir()
    other = Stub(tmp_path / "other")
    try:
        stub.script = [reply(status=307, Location=f"{other.url}/chat/completions")] * 50
        assert stub.generate() in (0, 2)
        assert stub.requests and not [r for r in other.requests if KEY in str(r)]
    finally:
        other.over.set()
        other.shutdown()
        other.server_close()
    count("API key", SURVIVED)


@pytest.mark.parametrize("password", ["sesame", "se/sesame", "se@sesame", "#sesame"])
def test_a_password_in_the_address_is_in_no_message(stub, capfd, password):  # noqa: F811
    count("API key", TRIED)
    stub.script = [reply(status=404)] * 9
    assert describe.main(stub.argv("--base-url", stub.url.replace("://", f"://me:{password}@"))) == 2
    assert "sesame" not in capfd.readouterr().err
    count("API key", SURVIVED)


def test_check_prints_to_a_terminal_that_knows_only_ascii(place, monkeypatch):
    count("describe.py --check", TRIED)
    file = place.write("d.json", json.dumps({"猫": "a cat", "犬": "a cat"}, ensure_ascii=False))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    assert describe.main(["--check", str(file)]) == 1
    count("describe.py --check", SURVIVED)


def test_the_count_of_faults_tried_and_survived():
    """Last in the file; printed with -s. A part of the file counts that part only."""
    listed = sum(len(names) for faults in (FAULTS, FAULTS_OF_DESCRIBE) for names in faults.values()) + len(ANSWERS)
    assert listed >= 70
    lines = [("area", "tried", "survived"), *((area, n, SURVIVED.get(area, 0)) for area, n in TRIED.items()),
             ("all", sum(TRIED.values()), sum(SURVIVED.values()))]
    print("\n" + "\n".join(f"{area:<22}{tried:>8}{survived:>10}" for area, tried, survived in lines))
