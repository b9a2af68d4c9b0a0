"""What the tests of faults share: a place where things are broken, and the count of what was survived."""

import collections
import contextlib
import io
import json
import shutil
import signal
import struct
import urllib.error
import zlib

import open_clip
import pytest
import torch
import torchvision
from conftest import (
    CLASSES,
    CSV,
    DRM,
    IDS,
    NAME,
    ROOT,
    VIT,
    argv,
    fmow,
    imagenet,
    iwildcam,
    own_folder,
    pictures,
    table,
    weights,
)
from safetensors.torch import load_file, save_file

import drm_min

GOOD = {name: [f"{name} with a tail", f"what a {name}"] for name in CLASSES}
WRITTEN = {
    key: dict(name=name, descriptions=[f"first of {key}", f"second of {key}"]) for key, name in IDS.items()
}
PROMPTS = {head: {c: [c] for c in CLASSES} for head in ("default", "concept")}
LONG_TEXT = "plank " * 90
NEST = "[" * 100_000
WORDS = {"ski": "plank", "tent": "cloth"}  # descriptions of the data sets in miniature
POOLS = {"ski": "plank", "swimming_pool": "water"}
ANIMALS = {str(y): f"beast {y}" for y in range(11)}
LANDS = {"airport_hangar": "a shed", "zoo": "cages"}
BIRDS = {"landbird": "claws", "waterbird": "webs"}
BIRD_ROWS = ("0,a.png,0,0,0", "1,a.png,1,0,1", "2,a.png,0,1,0", "3,a.png,1,2,0", "4,a.png,1,2,1")
FILES_OF_A_MODEL = dict(config="open_clip_config.json", weights="open_clip_model.safetensors", drm="drm.json")

# -------------------------------------------------------------------------------------------- the count

TRIED, SURVIVED = collections.Counter(), collections.Counter()


@contextlib.contextmanager
def counted(area, faults=1):
    """Around a test, or a part of one, that tries faults: if it ends well, they were survived."""
    TRIED[area] += faults
    yield
    SURVIVED[area] += faults


def lines_of_the_count():
    """How many faults were tried and survived, by area. A part of the tests counts that part only."""
    rows = [(area, n, SURVIVED[area]) for area, n in TRIED.items()]
    rows = [("area", "tried", "survived"), *rows, ("all", TRIED.total(), SURVIVED.total())]
    return [f"{area:<22}{tried:>8}{survived:>10}" for area, tried, survived in rows]


# ----------------------------------------------------------------------------------------- what is demanded


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
    """Every file below a folder with its bytes: a fingerprint, to which empty folders do not count."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def one_line(program, captured, said):
    """The last line of stderr is the only one of the program's, printable, and holds these words."""
    lines = captured.err.splitlines()
    own = [line for line in lines if line.startswith(f"{program}: ")]
    assert len(own) == 1 and lines[-1] == own[0] and "Traceback" not in captured.err, captured.err[-2000:]
    assert own[0].isprintable(), own
    for word in said:
        assert word in own[0], own


def ends_in_one_line(place, capfd, area, build, said):
    """A fault of drm_min's input: exit code 2, one line with these words, no file of the output changed."""
    with counted(area):
        command = build(place)
        before = contents(place.out)
        capfd.readouterr()
        with within(8):
            code = drm_min.main(command)
        captured = capfd.readouterr()
        assert code == 2 and captured.out == ""
        one_line("drm_min.py", captured, said)
        assert contents(place.out) == before


def is_told(place, capfd, area, build, said):
    """The run goes on to its end, and one line of its log has these words."""
    with counted(area):
        command = build(place)
        capfd.readouterr()
        assert drm_min.main(command) == 0
        captured = capfd.readouterr()
        told = [line for line in captured.err.splitlines() if said[0] in line]
        assert len(told) == 1 and all(word in told[0] for word in said), captured.err
        assert captured.out.startswith("| ") and "drm_min.py: " not in captured.err


def entries(faults):
    """{area: {name: (builder, words of the line)}} -> (area, builder, words) of each, for parametrize."""
    each = [(area, name, *given) for area, some in faults.items() for name, given in some.items()]
    return [pytest.param(area, build, said, id=f"{area}: {name}") for area, name, build, said in each]


# ------------------------------------------------------------------------------------------ what is broken


def png(width, height, rows=b""):
    """A PNG of 8 bits of grey that claims any size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def saved_by_torch(content):
    """-> the bytes of torch.save."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


class Trap:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, made):
        self.made = made

    def __reduce__(self):
        return open, (str(self.made), "w")


def nothing(base):
    """No damage."""


class Place:
    """A folder with results that must not change, and what faults are made of.

    A builder returns a command line of drm_min.
    """

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
        command = argv(self.out, self.world, **dict(method="zero-shot", epochs=1, overwrite=True) | more)
        return command + [str(word) for word in words]

    # ------------------------------------------------------------------------------ texts

    def texts(self, content=None, **changes):
        """With a description file of this content, or of good texts with changes."""
        return self.run(descriptions=self.write("d.json", GOOD | changes if content is None else content))

    def check(self, content, *words):
        """describe.py --check on a file of this content."""
        return ["--check", str(self.write("d.json", content)), *words]

    def check_classes(self, content):
        """describe.py --check on a good file, with --classes of this content."""
        return self.check(WRITTEN, "--classes", str(self.write("c", content)))

    def compare(self, content):
        """describe.py --compare on a file of this content and itself."""
        return ["--compare", *[str(self.write("a.json", content))] * 2]

    # -------------------------------------------------------------------------- data sets

    def data(self, dataset, words, damage=nothing, make=None):
        """A data set in miniature with the descriptions `words`, damaged after it was made."""
        base = self.root / "data"
        make(base) if make else base.mkdir()
        damage(base)
        root = base / "own.csv" if dataset == "csv" else base
        texts = dict(descriptions=self.write("words.json", words)) if words else {}
        return self.run(dataset=dataset, data_root=str(root), **texts)

    def csv(self, *rows, header="path,label,split,domain", only=False, damage=nothing, words=WORDS):
        def make(base):
            pictures(base, *(f"{name}.png" for name in "abcdef"))
            lines = [header, *(() if only else CSV), *rows]
            (base / "own.csv").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")

        return self.data("csv", words, damage, make)

    def image(self, make):
        """One test image that is not as it should be: bytes, or a function of its path."""

        def damage(base):
            make(base / "x.png") if callable(make) else (base / "x.png").write_bytes(make)

        return self.csv("x.png,ski,test,x", damage=damage)

    def folder(self, *more, damage=nothing, words=POOLS):
        return self.data("folder", words, damage, lambda base: own_folder(base, *more))

    def imagenet(self, *more, damage=nothing):
        command = self.data("imagenet", None, damage, lambda base: imagenet(base, *more))
        return command + ["--descriptions", str(ROOT / "descriptions/imagenet.json")]

    def birds(self, *rows, header="img_id,img_filename,y,split,place", only=False, damage=nothing):
        def make(base):
            table(base / "waterbirds_v1.0/metadata.csv", header, *(() if only else BIRD_ROWS), *rows)
            pictures(base, "waterbirds_v1.0/a.png", "outside.png")

        return self.data("waterbirds", BIRDS, damage, make)

    def cameras(self, file=None, row=None, damage=nothing):
        def add(base):
            pictures(base, "outside.jpg")
            if file:
                with open(base / "iwildcam_v2.0" / file, "a", encoding="utf-8") as end:
                    end.write(row + "\n")
            damage(base / "iwildcam_v2.0")

        return self.data("iwildcam", ANIMALS, add, iwildcam)

    def satellite(self, *rows, damage=nothing):
        def add(base):
            with open(base / "fmow_v1.1/rgb_metadata.csv", "a", encoding="utf-8") as end:
                end.write("".join(f"{row}\n" for row in rows))
            damage(base / "fmow_v1.1")

        return self.data("fmow", LANDS, add, fmow)

    def cifar(self, damage):
        """CIFAR-10 and STL-10 where nothing can be downloaded."""

        def download(*_, **__):
            raise urllib.error.URLError("no route to host")

        for module in (torchvision.datasets.cifar, torchvision.datasets.stl10):
            self.patch.setattr(module, "download_and_extract_archive", download)
        return self.data("cifar10", None, damage)

    # ---------------------------------------------------------------------------- weights

    def model(self, damage, method="zero-shot", **files):
        """A copy of the ViT with other files (None: without it): config, weights, drm."""
        folder = self.root / "model"
        shutil.copytree(self.world / "vit", folder)
        for name, content in files.items():
            path = folder / FILES_OF_A_MODEL[name]
            path.unlink(missing_ok=True)
            if name == "weights" and isinstance(content, dict):
                save_file(content, path)
            elif content is not None:
                self.write(path, content)
        if damage:
            damage(folder)
        return self.run(model=f"local-dir:{folder}", method=method)

    def config(self, **changes):
        config = json.loads((self.world / "vit/open_clip_config.json").read_text())
        return self.model(None, config=config | changes)

    def shape(self, **changes):
        """The ViT with another shape in its config."""
        return self.config(model_cfg=VIT | changes)

    def state(self):
        """The weights of the ViT."""
        return weights(self.world / "vit")

    def spoilt(self, value, method="zero-shot"):
        """Weights that are all one value."""
        state = self.state()
        for tensor in state.values():
            if tensor.is_floating_point():
                tensor.fill_(value)
        return self.model(None, method, weights=state)

    def pretrained(self, content, name="w.pt"):
        content = content if isinstance(content, bytes) else saved_by_torch(content)
        return self.run(model=NAME, pretrained=self.write(name, content))

    def resume(self, damage=nothing, **changes):
        """A run that was stopped in step 3 of 4 goes on, after damage to its checkpoint or its drm.json."""
        shutil.copytree(self.stopped, self.out, dirs_exist_ok=True)
        step = self.out / DRM / "step-3"
        if changes:
            about = json.loads((step / "drm.json").read_text())
            (step / "drm.json").write_text(json.dumps(about | changes))
        damage(step)
        return argv(self.out, self.world, select="best") + ["--resume"]

    def evaluate(self, content=None, dataset="folder", **changes):
        """--eval-only on a model whose drm.json has this content, or good content with changes."""
        good = dict(method="drm", beta=0.5, lam=1.0, seed=0, estimator="posterior", prompts=PROMPTS)
        self.model(None, drm=good | changes if content is None else content)
        where = ["--data-root", self.world / "data"] * (dataset != "toy")
        where += ["--out", self.out, "--model", f"local-dir:{self.root / 'model'}"]
        how = ["--eval-only", "--overwrite", "--dataset", dataset, "--device", "cpu", "--workers", "0"]
        return [*how, *map(str, where)]


# Damage to the checkpoint of a step, for Place.resume: a change to what one of its files holds.


def in_weights(change):
    """change: state dict -> state dict."""

    def damage(step):
        file = step / "open_clip_model.safetensors"
        save_file(change(load_file(file)), file)

    return damage


def in_progress(change):
    """change: what progress.pt holds -> what it will hold."""

    def damage(step):
        file = step / "progress.pt"
        torch.save(change(torch.load(file, weights_only=True)), file)

    return damage


def in_optimizer(change):
    """change: {number of a parameter: {name: tensor}} -> the same."""
    return in_progress(lambda progress: progress | {"optimizer": change(progress["optimizer"])})


def in_best(change):
    """change: {"score", "epoch", "state"} -> anything."""
    return in_progress(lambda progress: progress | {"best": change(progress["best"])})


def in_history(change):
    """change: the lines of history.csv, header first, each a list of fields -> the same."""

    def damage(step):
        file = step / "history.csv"
        lines = change([line.split(",") for line in file.read_text().splitlines()])
        file.write_text("".join(",".join(line) + "\n" for line in lines))

    return damage


@pytest.fixture(name="place")
def place_for_faults(tmp_path, world, stopped, monkeypatch):
    """open_clip knows the small ViT by name there, and nothing asks the network."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, NAME, VIT)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return Place(tmp_path, world, stopped, monkeypatch)
