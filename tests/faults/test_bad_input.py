"""Bad input of the command line and of description files.

One line on stderr that names the thing, its value and what is allowed; exit code 2; nothing written.
"""

import io
import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import IDS, KEY, ROOT
from place import (
    GOOD,
    LONG_TEXT,
    NEST,
    WRITTEN,
    contents,
    counted,
    ends_in_one_line,
    entries,
    is_told,
    one_line,
    place_for_faults,  # noqa: F401  the fixture `place`
    within,
)

import describe
import drm_min
from support import errors
from support.texts import load_descriptions

pytestmark = pytest.mark.usefixtures("one_thread", "one_tokenizer")

THINGS = "ski kite boat tent umbrella mushroom fish cactus".split()
OF_TOY = {name: f"a thing of shape {i}" for i, name in enumerate(THINGS)}


@pytest.fixture
def refused(tmp_path, monkeypatch, capfd):
    """Runs a command line that must be refused, in an empty folder -> its one line."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*argv):
        assert drm_min.main([str(a) for a in argv]) == 2
        out, err = capfd.readouterr()
        assert out == "" and err.startswith("drm_min.py: ") and err.count("\n") == 1 and err.endswith("\n"), (
            err
        )
        assert list(folder.iterdir()) == [], "nothing is written"
        return err

    return run


# ------------------------------------------------------------------------------------ the command line


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--dataset", "mnist"], ["--dataset", "mnist", "toy"]),
        (
            ["--method", "erm", "magic"],
            ["--method", "magic", "zero-shot, erm, erm-mixed, ensemble, wrm, drm, dual, flyp"],
        ),
        (
            ["--model", "ViT-Z-99", "--pretrained", "openai"],
            ["--model", "ViT-Z-99", "local-dir:FOLDER", "ViT-"],
        ),
        (["--model", "local-dir:" + "long" * 100], ["--model", "open_clip_config.json"]),
        (  # before a model is loaded
            ["--model", "local-dir:nowhere", "--dataset", "csv", "--data-root", "no.csv"],
            ["--data-root", "no.csv"],
        ),
        (["--eval-only", "--model", "local-dir:toy/clip", "--seeds", "2"], ["--eval-only", "one seed"]),
        (["--eval-only", "--model", "ViT-B-32"], ["--eval-only", "local-dir:FOLDER"]),
        (["--model", "local-dir:nowhere"], ["--model", "local-dir:nowhere", "open_clip_config.json"]),
        (["--model", "ViT-B-32"], ["--pretrained", "ViT-B-32", "openai", "laion2b_s34b_b79k"]),
        (["--model", "ViT-B-32", "--pretrained", "nonsense"], ["--pretrained", "nonsense", "openai"]),
        (["--pretrained", "openai"], ["--pretrained", "openai", "local-dir:toy/clip"]),
        (["--device", "tpu"], ["--device", "tpu", "auto", "cpu"]),
        (["--device", "cuda:99"], ["--device", "cuda:99", "cpu"]),
        (["--lam", "-1"], ["--lam", "-1", "from 0"]),
        (["--lam", "nan"], ["--lam", "nan", "from 0"]),
        (["--lam", "inf"], ["--lam", "inf", "from 0 to"]),
        (["--lam", "much"], ["--lam", "much", "float"]),
        (["--sweep", "1", "-2"], ["--sweep", "-2", "from 0"]),
        (["--beta", "2"], ["--beta", "2", "from 0 to 1"]),
        (["--alpha", "0.5", "1.5"], ["--alpha", "1.5", "from 0 to 1"]),
        (["--epochs", "0"], ["--epochs", "0", "whole number from 1"]),
        (["--epochs", "1.5"], ["--epochs", "1.5", "int"]),
        (["--batch-size", "0"], ["--batch-size", "0", "whole number from 1"]),
        (["--seeds", "0"], ["--seeds", "0", "from 1"]),
        (["--seed", "-1"], ["--seed", "-1", "from 0"]),
        (["--lr", "-0.1"], ["--lr", "-0.1", "from 0"]),
        (
            ["--core-targets", "best"],
            ["--core-targets", "best", "softmax, label, normalized, bootstrap, posterior, onehot, oracle"],
        ),
        (["--loss", "hinge"], ["--loss", "hinge", "ce, flyp"]),
        (["--precision", "fp8"], ["--precision", "fp8", "auto, fp32, bf16, fp16"]),
        (["--lambda", "1"], ["--lambda"]),
        (["--method"], ["--method"]),
        (["--out", ""], ["--out"]),
        (["--descriptions", "missing.json"], ["--descriptions", "missing.json", "cannot be read"]),
    ],
)
def test_options(refused, argv, said):
    line = refused(*argv)
    for word in said:
        assert word in line


def test_output_folder_that_cannot_be_written(refused, tmp_path):
    file = tmp_path / "file"
    file.write_text("kept")
    line = refused("--out", file / "runs")
    assert "--out" in line and str(file / "runs") in line and "folder" in line
    assert "cannot be written" in refused("--out", file) and file.read_text() == "kept"


def test_damaged_weights(refused, tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    config = folder / "open_clip_config.json"
    config.write_text((ROOT / "toy/clip/open_clip_config.json").read_text())
    # a config and no weights: random ones are no zero-shot model
    assert "--model" in refused("--model", f"local-dir:{folder}")
    (folder / "open_clip_model.safetensors").write_bytes(b"x" * 100)
    assert "cannot load" in refused("--model", f"local-dir:{folder}")
    config.write_text("{}")
    assert "cannot load" in refused("--model", f"local-dir:{folder}")


def test_refused_runs_cost_no_existing_result(refused, tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    (old / "results.json").write_text("old")
    refused("--out", old, "--lam", "-1")
    refused("--out", old, "--descriptions", "missing.json")
    assert [f.name for f in old.iterdir()] == ["results.json"] and (old / "results.json").read_text() == "old"


def test_a_failed_write_costs_no_existing_file(tmp_path):
    (tmp_path / "results.json").write_text("old")

    def fails(path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(errors.BadInput, match="results.json: cannot be written .No space left"):
        errors.write(tmp_path / "results.json", fails)
    assert (tmp_path / "results.json").read_text() == "old"


BAD_VALUES = (
    *(dict(lam=-1), dict(lam="1"), dict(lam=True), dict(epochs=2.5), dict(method=("erm", "magic"))),
    *(dict(method="magic"), dict(dataset=None), dict(model=3), dict(method=()), dict(alpha=())),
    *(dict(alpha=None), dict(sweep=None), dict(seeds=None)),
)


def test_the_config_itself_checks_so_that_notebooks_hear_it_too():
    for bad in BAD_VALUES:
        with pytest.raises(errors.BadInput, match=f"--{next(iter(bad))}"):
            drm_min.Config(**bad)
    config = drm_min.Config(lam=2, epochs=3.0, method="erm", alpha=1)
    assert (config.lam, config.epochs, config.method, config.alpha) == (2.0, 3, ("erm",), (1.0,))
    assert isinstance(config.lam, float) and isinstance(config.epochs, int)


# ---------------------------------------------------------------------------------- description files


def changed(**changes):
    return {k: v for k, v in (OF_TOY | changes).items() if v is not None}


@pytest.mark.parametrize(
    "content, said",
    [
        ("", ["not JSON"]),
        ("{'ski': 'a'}", ["not JSON"]),
        (b"\xff\xfe\x00", ["UTF-8"]),
        ("[" * 100000, ["not JSON"]),
        ('{"ski": ' + "9" * 5001 + "}", ["not JSON"]),
        ([1, 2], ["no classes"]),
        ({"classes": ["ski"]}, ["no classes"]),
        (changed(tent=None), ["missing: 'tent'"]),
        (changed(yurt="a round tent"), ["extra: 'yurt' (no class of the data)"]),
        (changed(tent=None, yurt="a"), ["missing: 'tent'", "extra: 'yurt'"]),
        ('{"ski": "a", "ski": "b"}', ["repeated key: 'ski'", "allowed: once"]),
        (
            '{"classes": {"ski": {"descriptions": ["a"]}, "ski": {"descriptions": ["b"]}}}',
            ["repeated key: 'ski'", "allowed: once"],
        ),
        (changed(ski="plank " * 90), ["92 tokens", "plank plank", "32 at most"]),
        (changed(ski=["short", "plank " * 90]), ["92 tokens"]),
        (changed(ski=""), ["'ski'", "a text or a list of texts"]),
        (changed(ski=[]), ["'ski'", "a text or a list of texts"]),
        (changed(ski=["a", 3]), ["'ski'", "a text or a list of texts"]),
        (changed(ski=7), ["'ski'", "a text or a list of texts"]),
        (changed(ski={"texts": ["a"]}), ["'ski'", "a text or a list of texts"]),
    ],
)
def test_description_files(refused, tmp_path, content, said):
    file = tmp_path / "bad.json"
    content = content if isinstance(content, (bytes, str)) else json.dumps(content)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    line = refused("--descriptions", file)
    assert "--descriptions" in line and "bad.json" in line
    for word in said:
        assert word in line


def test_a_folder_is_no_description_file(refused, tmp_path):
    assert "cannot be read" in refused("--descriptions", tmp_path)


# They are matched by key alone.


def write(tmp_path, content):
    file = tmp_path / "d.json"
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return file


IN_FULL = {
    "2": {"name": "dik", "descriptions": ["c"]},
    "0": {"descriptions": ["a"]},
    "1": {"descriptions": "b"},
}


@pytest.mark.parametrize(
    "content",
    [
        {"crane": "a", "sea lion": "b", "Günther's dik-dik": "c"},
        {"Günther's dik-dik": "c", "crane": "a", "sea lion": "b"},
        {"2": "c", "1": "b", "0": "a"},
        {"1": ["b"], "0": ["a"], "2": ["c"]},
        {"about": {"source": "x"}, "classes": IN_FULL},
    ],
)
def test_descriptions_of_every_shape_and_order(tmp_path, content):
    assert load_descriptions(write(tmp_path, content), IDS) == [["a"], ["b"], ["c"]]


def test_key_and_name_of_one_class_are_a_repetition(tmp_path):
    content = {"0": "a", "crane": "x", "1": "b", "2": "c"}
    with pytest.raises(errors.BadInput, match="repeated key: '0'"):
        load_descriptions(write(tmp_path, content), IDS)


def test_order_of_the_file_changes_no_head(clip, tmp_path):
    model, tokenizer = clip
    heads = []
    for backwards in (False, True):
        file = write(tmp_path, dict(sorted(OF_TOY.items(), reverse=backwards)))
        texts = load_descriptions(file, {k: k for k in OF_TOY})
        heads.append(drm_min.build_head(model, drm_min.tokenize(tokenizer, texts)))
    assert torch.equal(*heads)


# --------------------------------------------------------------------- beside results that must not change


def link_to_itself(place):
    (place.root / "d.json").symlink_to("d.json")
    return place.run(descriptions=place.root / "d.json")


DEEP = "[" * 500 + "]" * 500
# area -> name -> (builder, words that the line must hold)
FAULTS = {
    "command line": {
        "a name longer than a file may have": (
            lambda p: p.run("--out", p.root / ("n" * 300)),
            ["--out", "nnn"],
        ),
        "output on a device": (lambda p: p.run("--out", os.devnull), ["--out", os.devnull]),
        "a rate that overflows": (lambda p: p.run("--lr", "1e999"), ["--lr", "inf"]),
        "a whole number of 5000 digits": (lambda p: p.run("--epochs", "9" * 5000), ["--epochs", "999"]),
        "a seed too large": (lambda p: p.run("--seed", 2**31 + 1), ["--seed", "2147483649"]),
        "a weight that is no number": (lambda p: p.run("--beta", "nan"), ["--beta", "nan", "from 0 to 1"]),
        "a template without a place for the name": (
            lambda p: p.run("--template", "a photo"),
            ["--template", "a photo"],
        ),
        "a template with two places": (
            lambda p: p.run("--template", "{} and {}"),
            ["--template", "{} and {}"],
        ),
        "a template of 5000 words": (
            lambda p: p.run("--template", "x " * 5000 + "{}"),
            ["default prompts", "tokens", "77"],
        ),
        "an empty template": (lambda p: p.run("--template", ""), ["--template"]),
        "parts of a contrastive batch": (
            lambda p: p.run("--accumulate", 2, "--loss", "flyp"),
            ["--accumulate 2"],
        ),
        "fewer than no workers": (lambda p: p.run("--workers", -1), ["--workers", "-1"]),
        "more workers than there are": (lambda p: p.run("--workers", 1025), ["--workers", "1025", "1024"]),
        "an option cut short": (lambda p: p.run("--meth", "erm"), ["--meth"]),
        "a word without an option": (lambda p: p.run("stray"), ["stray"]),
        "a switch with a value": (lambda p: p.run("--resume", "no"), ["no"]),
        "to go on and to begin anew": (lambda p: p.run("--resume"), ["--resume --overwrite"]),
        "to go on where nothing is kept": (
            lambda p: [w for w in p.run("--resume", "--save-every", -1) if w != "--overwrite"],
            ["--save-every -1"],
        ),
        "a folder of data for a world that is drawn": (
            lambda p: ["--data-root", str(p.world / "data"), "--out", str(p.out)],
            ["--data-root", "toy draws its images", "folder"],
        ),
        "a device without memory": (lambda p: p.run("--device", "meta"), ["--device", "meta"]),
        "lambdas that look alike": (
            lambda p: p.run("--sweep", 0.12345671, 0.12345672),
            ["--sweep", "0.12345671"],
        ),
        "alphas that look alike": (lambda p: p.run("--alpha", 0.50000001, 0.5), ["--alpha", "0.50000001"]),
        "an oracle where nobody knows": (
            lambda p: p.run("--core-targets", "oracle", method="drm"),
            ["--core-targets", "oracle", "folder"],
        ),
        "a schema that nobody has": (lambda p: p.run(model="foo:bar"), ["--model", "foo:bar"]),
        "a path up from the hub": (lambda p: p.run(model="hf-hub:../../x"), ["--model", "hf-hub:../../x"]),
        "a folder without a name": (lambda p: p.run(model="local-dir:"), ["--model", "local-dir:"]),
        "weights for a model that has its own": (
            lambda p: p.run(model="hf-hub:a/b", pretrained="openai"),
            ["--pretrained", "openai"],
        ),
        "evaluation with other prompts": (lambda p: p.evaluate() + ["--template", "a {}"], ["--template"]),
        "evaluation over seeds": (lambda p: p.evaluate() + ["--seeds", "3"], ["--eval-only", "one seed"]),
    },
    "description files": {
        "10 MB of nesting": (lambda p: p.texts('{"cat":' * 1_500_000), ["d.json", "not JSON"]),
        "nesting just not too deep, as a text": (
            lambda p: p.texts(json.dumps(GOOD)[:-1].replace('"owl"', '"x"') + f',"owl":{DEEP}}}'),
            ["d.json", "extra: 'x'"],
        ),
        "nesting as the texts of a class": (
            lambda p: p.texts(f'{{"dog":"a","owl":"b","cat":{DEEP}}}'),
            ["d.json", "'cat'"],
        ),
        "an object for a text": (lambda p: p.texts(cat=[{"text": "a"}]), ["d.json", "'cat'"]),
        "NaN for texts": (lambda p: p.texts(cat=float("nan")), ["d.json", "'cat'", "nan"]),
        "true for texts": (lambda p: p.texts(cat=True), ["d.json", "'cat'", "True"]),
        "null for classes": (lambda p: p.texts({"classes": None}), ["d.json", "no classes"]),
        "a byte-order mark": (
            lambda p: p.texts(b"\xef\xbb\xbf" + json.dumps(GOOD).encode()),
            ["d.json", "UTF-8"],
        ),
        "UTF-16": (lambda p: p.texts(json.dumps(GOOD).encode("utf-16")), ["d.json", "UTF-8"]),
        "a comma too many": (lambda p: p.texts(json.dumps(GOOD)[:-1] + ",}"), ["d.json", "not JSON"]),
        "two files in one": (lambda p: p.texts(json.dumps(GOOD) * 2), ["d.json", "not JSON"]),
        "a path for a key": (lambda p: p.texts(**{"../../x": "a"}), ["extra: '../../x'"]),
        "a class without a name": (
            lambda p: p.texts(cat=dict(name=" ", descriptions=["a"])),
            ["name: 'cat'", "' '; allowed: a text"],
        ),
        "a list for a name": (
            lambda p: p.texts(cat=dict(name=["x"], descriptions=["a"])),
            ["name: 'cat'", "['x']", "allowed: a text"],
        ),
        "a name longer than the context": (
            lambda p: p.texts(cat=dict(name=LONG_TEXT, descriptions=["a"])),
            ["97 tokens", "plank"],
        ),
        "escapes in a text": (lambda p: p.texts(cat="\x1b]0;x\x07 tail " * 40), ["d.json", "tokens"]),
        "escapes in a key": (lambda p: p.texts(**{"\x1b[31mred": "a"}), ["extra: ", "red"]),
        "a link to itself": (link_to_itself, ["d.json"]),
    },
}
# What is not refused: words of a line of the log.
TOLD = {
    "command line": {
        "a concept head that is no better than chance": (
            lambda p: p.run(method="wrm"),
            ["warning: the concept head is no better than chance (33.3 %)", "--descriptions", "labels"],
        ),
    },
    "description files": {
        "the name of another class": (
            lambda p: p.texts(cat=dict(name="dog", descriptions=["a"])),
            ["'cat' and 'dog' have one default prompt", "that head cannot tell them apart"],
        ),
        "one text of two classes but for blanks": (
            lambda p: p.texts(cat="a  Tail", dog="a tail"),
            ["equal texts: 'dog'", "also of cat"],
        ),
        "capitals in a key": (
            lambda p: p.texts({"Cat": "a", "dog": "b", "owl": "c"}),
            ["mended key: 'cat' ('Cat' in the file)"],
        ),
    },
}
# Those of describe.py: the builder returns its command line. Exit code 1 where --check finds something.
FAULTS_OF_DESCRIBE = {
    "describe.py": {
        "two commands in one": (lambda p: ["--llm", "x", "--check", "y"], ["--check", "--llm"]),
        "no command": (lambda p: [], ["--llm", "--check", "--compare"]),
        "an option cut short": (lambda p: ["--che", "x"], ["--che"]),
        "classes that nobody named": (lambda p: ["--llm", "x"], ["--dataset", "--classes"]),
        "a data set that nobody has": (
            lambda p: ["--check", "x", "--dataset", "../toy/x"],
            ["--dataset", "../toy/x"],
        ),
        "a data set longer than a name may be": (
            lambda p: ["--check", "x", "--dataset", "n" * 300],
            ["--dataset", "nnn"],
        ),
        "a file longer than a name may be": (lambda p: ["--check", "n" * 300], ["nnn"]),
        "a time-out that is no number": (lambda p: [*p.llm, "--timeout", "nan"], ["--timeout", "nan"]),
        "a seed of 5000 digits": (lambda p: [*p.llm, "--seed", "9" * 5000], ["--seed", "999"]),
        "half a text a class": (lambda p: [*p.llm, "--per-class", "0.5"], ["--per-class", "0.5"]),
        "a style that nobody has": (lambda p: [*p.llm, "--style", "odd"], ["--style", "odd"]),
        "an endpoint on a disk": (
            lambda p: [
                "--llm",
                "x",
                *p.ids,
                "--base-url",
                "file:///etc/passwd",
                "--out",
                str(p.out / "new.json"),
            ],
            ["--base-url", "file:///etc/passwd"],
        ),
        "check a folder": (lambda p: ["--check", str(p.root)], ["cannot be read"]),
        "check what is not there": (lambda p: ["--check", str(p.root / "no.json")], ["no.json"]),
        "compare with nothing": (
            lambda p: ["--compare", str(p.write("a.json", WRITTEN)), str(p.root / "no.json")],
            ["no.json"],
        ),
        "compare one class": (lambda p: p.compare({"a": "b"}), ["1 classes"]),
        "compare a list": (lambda p: p.compare(["a", "b"]), ["no classes"]),
        "compare where a name is a list": (
            lambda p: p.compare({"a": dict(name=["x"], descriptions=["t"]), "b": "u"}),
            ["a.json"],
        ),
        "classes of which a name is a list": (
            lambda p: p.check_classes({"a": dict(name=["x"]), "b": "u"}),
            ["/c"],
        ),
        "a class with a blank name": (
            lambda p: p.check_classes({"a": " ", "b": "u"}),
            ["/c", "allowed: a text"],
        ),
        "classes that are numbers": (lambda p: p.check_classes([1, 2]), ["/c"]),
        "classes of which one is null": (lambda p: p.check_classes([None, "a"]), ["/c"]),
        "classes that are lists": (lambda p: p.check_classes([["a"], "b"]), ["/c", "no classes can be read"]),
        "classes of brackets": (lambda p: p.check_classes(NEST), ["/c", "no classes can be read"]),
        "classes of 5000 digits": (
            lambda p: p.check_classes("[" + "9" * 5000 + "]"),
            ["/c", "no classes can be read"],
        ),
        "NaN twice for a class": (lambda p: p.check_classes("[NaN, NaN]"), ["/c", "nan"]),
        "write where there is no folder": (
            lambda p: [*p.llm, "--out", str(p.out / "no/such.json")],
            ["--out", "such.json"],
        ),
        "write over a folder": (lambda p: [*p.llm, "--out", str(p.out)], ["--out", "another file"]),
        "write over half a file": (
            lambda p: [*p.llm, "--out", str(p.write("out/half.json", '{"classes":'))],
            ["half.json"],
        ),
        "write over what is no text": (
            lambda p: [*p.llm, "--out", str(p.write("out/bytes.json", b"\xff"))],
            ["bytes.json"],
        ),
        "write over 5000 digits": (
            lambda p: [*p.llm, "--out", str(p.write("out/digits.json", '{"classes":' + "9" * 5000))],
            ["digits.json"],
        ),
        "write over brackets": (
            lambda p: [*p.llm, "--out", str(p.write("out/nest.json", NEST))],
            ["nest.json"],
        ),
        "write to a name longer than may be": (
            lambda p: [*p.llm, "--out", str(p.out / ("n" * 300))],
            ["--out", "nnn"],
        ),
    },
    "describe.py --check": {
        "no class at all": (lambda p: p.check({}), ["stop"]),
        "a number of 5000 digits": (lambda p: p.check('{"a":' + "9" * 5000 + "}"), ["JSON", "4300"]),
        "10 MB of nesting": (lambda p: p.check('{"a":' * 2_000_000), ["JSON", "recursion"]),
        "nesting for texts": (lambda p: p.check(f'{{"a":{DEEP},"b":"x"}}'), ["no texts", "| a "]),
        "a name that training would refuse": (
            lambda p: p.check(WRITTEN | {"0": dict(name="", descriptions=["x"])}, *p.ids),
            ["stop", "| name  | 0 "],
        ),
        "escapes in a key": (lambda p: p.check(WRITTEN | {"\x1b[31m": "crane"}, *p.ids), ["extra"]),
        "a bar in a key": (lambda p: p.check(WRITTEN | {"a|b": "crane"}, *p.ids), ["extra", "a\\|b"]),
        "a class by its key and by its name": (
            lambda p: p.check(WRITTEN | {"0": dict(name="bird", descriptions=["x"]), "crane": "y"}, *p.ids),
            ["stop", "| repeated key | 0 ", "2 times"],
        ),
        "a key of two lines": (
            lambda p: p.check(WRITTEN | {"a\nb": "crane"}, *p.ids),
            ["| extra ", "| a b "],
        ),
    },
}


@pytest.mark.parametrize("area, build, said", entries(FAULTS))
def test_bad_input_ends_in_one_line_and_costs_nothing(place, capfd, area, build, said):
    ends_in_one_line(place, capfd, area, build, said)


@pytest.mark.parametrize("area, build, said", entries(TOLD))
def test_what_is_not_refused_is_told(place, capfd, area, build, said):
    is_told(place, capfd, area, build, said)


@pytest.mark.parametrize("area, build, said", entries(FAULTS_OF_DESCRIBE))
def test_bad_input_of_describe_ends_in_one_line_and_costs_nothing(
    place, capfd, monkeypatch, area, build, said
):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(describe.Llm, "ask", lambda *_: pytest.fail("a request was sent"))
    with counted(area):
        command = build(place)
        before = contents(place.out)
        with within(8):
            code = describe.main(command)
        captured = capfd.readouterr()
        if "--check" in area:
            lines = captured.out.splitlines()
            assert code == 1 and captured.err == "" and "1 faults that" in lines[-1]
            assert all(word in captured.out for word in said) and captured.out.replace("\n", "").isprintable()
            assert all(line.startswith(("| ", str(place.root))) for line in lines), captured.out
        else:
            assert code == 2 and captured.out == ""
            one_line("describe.py", captured, said)
        assert contents(place.out) == before


@pytest.mark.slow
def test_bad_input_in_processes_of_their_own(place):
    """As a shell sees it: the code, one line, and nothing on standard output."""
    commands = [
        ("drm_min.py", place.run("--lam", "-1"), "--lam -1"),
        ("describe.py", ["--llm", "x", "--timeout", "0"], "--timeout"),
        ("describe.py", ["--check", str(place.root / "no.json")], "no.json"),
    ]
    before = contents(place.out)
    for program, words, said in commands:
        with counted("processes"):
            done = subprocess.run([sys.executable, ROOT / program, *words], capture_output=True, text=True)
            assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
            assert done.stderr.startswith(f"{program}: ") and said in done.stderr
            assert contents(place.out) == before


@counted("describe.py --check")
def test_check_prints_to_a_terminal_that_knows_only_ascii(place, monkeypatch):
    file = place.write("d.json", json.dumps({"猫": "a cat", "犬": "a cat"}, ensure_ascii=False))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    assert describe.main(["--check", str(file), "--strict"]) == 1
