"""What comes from elsewhere runs no code, starts no program and writes nothing where it does not belong."""

import ast
import json
import os
import pickle
import shutil

import pytest
from conftest import ROOT, evaluation, pictures
from PIL import EpsImagePlugin
from place import (
    PROMPTS,
    Trap,
    contents,
    counted,
    one_line,
    place_for_faults,  # noqa: F401  the fixture `place`
    saved_by_torch,
)

import drm_min

pytestmark = pytest.mark.usefixtures("one_thread", "one_tokenizer")

FORBIDDEN = "pickle marshal shelve dill cloudpickle joblib yaml subprocess pty code ctypes runpy".split()
CALLS = "eval exec compile __import__ importlib.import_module os.system os.popen".split()
CALLS += ["torch.jit.load", "torch.hub.load"]
SOURCES = ["drm_min.py", "describe.py"]
for part in ("support", "toy"):
    SOURCES += sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / part).rglob("*.py"))


def dangers(source):
    """By what a program could run foreign code, from its syntax tree.

    Words in comments are no danger, nor is model.eval().
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += dangers_of_import([alias.name for alias in node.names])
        if isinstance(node, ast.ImportFrom):
            found += dangers_of_import([node.module or ""])
        if isinstance(node, ast.Call):
            found += dangers_of_call(node)
    return found


def dangers_of_import(names):
    return [name for name in names if name.split(".")[0] in FORBIDDEN]


def dangers_of_call(node):
    name, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
    found = [k for k in ("shell", "allow_pickle", "trust_remote_code") if given.get(k, "False") != "False"]
    if name in CALLS or name.startswith(("os.exec", "os.spawn", "os.posix_spawn")):
        found.append(name)
    if name == "torch.load" and given.get("weights_only") != "True":
        found.append(name)
    return found


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_is_unpickled_evaluated_or_given_to_a_shell(name):
    assert dangers((ROOT / name).read_text(encoding="utf-8")) == []


def test_the_look_for_dangers_goes_over_all_that_runs():
    assert {"support/weights.py", "support/readers/tables.py", "toy/world.py", "toy/pretrain.py"} <= set(
        SOURCES
    )


@pytest.mark.parametrize(
    "source",
    [
        *("import pickle", "from pickle import loads", "import numpy, subprocess", "eval(x)", "exec('x')"),
        *("os.system(x)", "os.execv(a, b)", "torch.load(x)", "torch.load(x, weights_only=False)"),
        *(
            "f(x, shell=True)",
            "numpy.load(x, allow_pickle=True)",
            "torch.jit.load(x)",
            "__import__('pickle')",
        ),
    ],
)
def test_the_look_for_dangers_finds_them(source):
    assert dangers(source) and not dangers(f"'''{source}'''\nmodel.eval()\ntorch.load(x, weights_only=True)")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "model.pth", "pytorch_model.bin"])
@pytest.mark.parametrize("bare", [False, True])
@counted("security")
def test_a_pickle_among_the_weights_of_a_folder_runs_no_code(place, capfd, name, bare):
    made = place.root / "made"

    def lay(folder):
        content = pickle.dumps(Trap(made)) if bare else saved_by_torch(dict(state_dict=Trap(made)))
        (folder / name).write_bytes(content)

    command = place.model(lay, weights=None)
    assert drm_min.main(command) == 2 and not made.exists()
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith(f"drm_min.py: --model local-dir:{place.root / 'model'}: open_clip cannot load it")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("bare", [False, True])
@counted("security")
def test_a_pickle_beside_a_checkpoint_runs_no_code(place, bare):
    """In the place of its progress, which torch.save wrote, too."""
    made = place.root / "made"

    def lay(step):
        assert (step / "progress.pt").is_file()
        content = pickle.dumps(Trap(made)) if bare else saved_by_torch({"optimizer": Trap(made)})
        for name in ("progress.pt", "optimizer.bin", "open_clip_pytorch_model.bin", "scaler.pkl"):
            (step / name).write_bytes(content)

    command = place.resume(lay)
    assert drm_min.main(command) == 2 and not made.exists()


@counted("security")
def test_a_batch_of_cifar10_with_another_checksum_is_not_unpickled(place, capfd):
    """torchvision unpickles the batches; it asks for their checksums first."""
    made = place.root / "made"
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]

    def lay(base):
        for name in names:
            place.write(base / "cifar-10-batches-py" / name, pickle.dumps(Trap(made)))

    command = place.cifar(lay)
    capfd.readouterr()
    assert drm_min.main(command) == 2
    one_line("drm_min.py", capfd.readouterr(), ["--data-root", "no route"])
    assert not made.exists()


@counted("security")
def test_paths_in_drm_json_are_read_by_nobody(world, tmp_path):
    shutil.copytree(world / "vit", tmp_path / "m")
    recipe = dict.fromkeys(("pretrained", "data_root", "descriptions"), "/nowhere")
    about = dict(method="drm", beta=0.5, lam=1.0, seed=0, prompts=PROMPTS, out=str(tmp_path / "other"))
    about |= dict(model="local-dir:/nowhere", recipe=recipe | dict(model="local-dir:/nowhere"))
    (tmp_path / "m" / "drm.json").write_text(json.dumps(about))
    report = drm_min.run(evaluation(world, tmp_path / "m"), tmp_path / "out")
    assert report["about"]["model"] == f"local-dir:{tmp_path / 'm'}"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "out"]


@counted("security")
def test_names_with_path_separators_leave_the_output_where_it_belongs(place, capfd):
    """Labels and domains of a CSV file are anybody's; folders are named after method, lambda and seed."""
    names = {"../../up": "a", "/top": "b", "..": "c"}
    rows = [f"a.png,{name},{split},x" for name in names for split in ("train", "val")]
    rows += ["a.png,..,test,../../x", "b.png,..,test,/x/y"]
    command = place.csv(*rows, only=True, words=names) + ["--method", "erm", "--batch-size", "2"]
    before, folders = contents(place.root), {p for p in place.root.rglob("*") if p.is_dir()}
    assert drm_min.main(command) == 0
    assert "../../x" in json.loads((place.out / "results.json").read_text())["results"][0]["domains"]
    changed = [name for name, content in contents(place.root).items() if before.get(name) != content]
    assert changed and all(name.startswith("out/") for name in changed), changed
    new = {p for p in place.root.rglob("*") if p.is_dir()} - folders
    assert {p.name for p in new} <= {"erm-seed-0", "model"}


def test_links_in_the_data_root_are_followed_as_their_owner_laid_them(place):
    """Data sets are often put together from links.

    Who can lay one in the data root can as well lay the image there.
    """
    elsewhere = pictures(place.root, "elsewhere.png") / "elsewhere.png"
    assert drm_min.main(place.image(lambda path: path.symlink_to(elsewhere))) == 0


@pytest.mark.skipif(os.name != "posix", reason="a shell script stands in for Ghostscript")
@counted("security")
def test_an_image_starts_no_other_program(place, monkeypatch):
    made = place.root / "made"
    program = place.write("bin/gs", f"#!/bin/sh\ntouch {made}\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # what was found out about another PATH
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    assert drm_min.main(place.image(eps)) == 2 and not made.exists()
