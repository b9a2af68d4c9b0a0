"""Bad input: one line on stderr that names the thing, its value and what is allowed; exit code 2; nothing written."""
import json

import pytest
import torch

import describe
import drm_min

GOOD = {name: f"a thing of shape {i}" for i, name in enumerate("ski kite boat tent umbrella mushroom fish cactus".split())}


@pytest.fixture
def refused(tmp_path, monkeypatch, capfd):
    """Runs a command line that must be refused, in an empty folder -> its one line."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*argv):
        assert drm_min.main([str(a) for a in argv]) == 2
        out, err = capfd.readouterr()
        assert out == "" and err.startswith("drm_min.py: ") and err.count("\n") == 1 and err.endswith("\n"), err
        assert list(folder.iterdir()) == [], "nothing is written"
        return err

    return run


@pytest.mark.parametrize("argv, said", [
    (["--dataset", "mnist"], ["--dataset", "mnist", "toy"]),
    (["--method", "erm", "magic"], ["--method", "magic", "zero-shot, erm, wrm, drm, dual, flyp"]),
    (["--model", "ViT-Z-99", "--pretrained", "openai"], ["--model", "ViT-Z-99", "local-dir:FOLDER", "ViT-"]),
    (["--model", "local-dir:" + "long" * 100], ["--model", "open_clip_config.json"]),
    (["--model", "local-dir:nowhere", "--dataset", "csv", "--data-root", "no.csv"], ["--data-root", "no.csv"]),  # before a model is loaded
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
    (["--core-targets", "best"], ["--core-targets", "best", "softmax, normalized, label, onehot, oracle"]),
    (["--loss", "hinge"], ["--loss", "hinge", "ce, flyp"]),
    (["--lambda", "1"], ["--lambda"]),
    (["--method"], ["--method"]),
    (["--out", ""], ["--out"]),
    (["--descriptions", "missing.json"], ["--descriptions", "missing.json", "cannot be read"]),
])
def test_options(refused, argv, said):
    line = refused(*argv)
    for word in said:
        assert word in line


def changed(**changes):
    return {k: v for k, v in (GOOD | changes).items() if v is not None}


@pytest.mark.parametrize("content, said", [
    ("", ["not JSON"]),
    ("{'ski': 'a'}", ["not JSON"]),
    (b"\xff\xfe\x00", ["UTF-8"]),
    ("[" * 100000, ["not JSON"]), ('{"ski": ' + "9" * 5001 + "}", ["not JSON"]),
    ([1, 2], ["no classes"]),
    ({"classes": ["ski"]}, ["no classes"]),
    (changed(tent=None), ["missing: tent"]),
    (changed(yurt="a round tent"), ["not in the data: yurt"]),
    (changed(tent=None, yurt="a"), ["missing: tent", "not in the data: yurt"]),
    ('{"ski": "a", "ski": "b"}', ["'ski' repeated"]),
    ('{"classes": {"ski": {"descriptions": ["a"]}, "ski": {"descriptions": ["b"]}}}', ["'ski' repeated"]),
    (changed(ski="plank " * 90), ["92 tokens", "plank plank", "32 at most"]),
    (changed(ski=["short", "plank " * 90]), ["92 tokens"]),
    (changed(ski=""), ["'ski'", "a text or a list of texts"]),
    (changed(ski=[]), ["'ski'", "a text or a list of texts"]),
    (changed(ski=["a", 3]), ["'ski'", "a text or a list of texts"]),
    (changed(ski=7), ["'ski'", "a text or a list of texts"]),
    (changed(ski={"texts": ["a"]}), ["'ski'", "a text or a list of texts"]),
    (changed(ski=GOOD["kite"].upper() + " "), ["'kite'", "another class", "a thing of shape 1"]),
])
def test_description_files(refused, tmp_path, content, said):
    file = tmp_path / "bad.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode() if isinstance(content, str) else json.dumps(content).encode())
    line = refused("--descriptions", file)
    assert "--descriptions" in line and "bad.json" in line
    for word in said:
        assert word in line


def test_a_folder_is_no_description_file(refused, tmp_path):
    assert "cannot be read" in refused("--descriptions", tmp_path)


def test_output_folder_that_cannot_be_written(refused, tmp_path):
    file = tmp_path / "file"
    file.write_text("kept")
    line = refused("--out", file / "runs")
    assert "--out" in line and str(file / "runs") in line and "folder" in line
    assert "cannot be written" in refused("--out", file) and file.read_text() == "kept"


def test_damaged_weights(refused, tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text((describe.ROOT / "toy/clip/open_clip_config.json").read_text())
    assert "--model" in refused("--model", f"local-dir:{folder}")  # a config and no weights: random ones are no zero-shot model
    (folder / "open_clip_model.safetensors").write_bytes(b"x" * 100)
    assert "cannot load" in refused("--model", f"local-dir:{folder}")
    (folder / "open_clip_config.json").write_text("{}")
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

    with pytest.raises(drm_min.BadInput, match="results.json: cannot be written .No space left"):
        drm_min.write(tmp_path / "results.json", fails)
    assert (tmp_path / "results.json").read_text() == "old"


def test_the_config_itself_checks_so_that_notebooks_hear_it_too():
    for bad in (dict(lam=-1), dict(lam="1"), dict(lam=True), dict(epochs=2.5), dict(method=("erm", "magic")), dict(method="magic"),
                dict(dataset=None), dict(model=3), dict(method=()), dict(alpha=()), dict(alpha=None), dict(sweep=None), dict(seeds=None)):
        with pytest.raises(drm_min.BadInput, match=f"--{next(iter(bad))}"):
            drm_min.Config(**bad)
    config = drm_min.Config(lam=2, epochs=3.0, method="erm", alpha=1)
    assert (config.lam, config.epochs, config.method, config.alpha) == (2.0, 3, ("erm",), (1.0,))
    assert isinstance(config.lam, float) and isinstance(config.epochs, int)


# --------------------------------------------------------------------------------- descriptions are matched by key alone

CLASSES = {"0": "crane", "1": "sea lion", "2": "Günther's dik-dik"}


def write(tmp_path, content):
    file = tmp_path / "d.json"
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return file


@pytest.mark.parametrize("content", [
    {"crane": "a", "sea lion": "b", "Günther's dik-dik": "c"},
    {"Günther's dik-dik": "c", "crane": "a", "sea lion": "b"},
    {"2": "c", "1": "b", "0": "a"},
    {"1": ["b"], "0": ["a"], "2": ["c"]},
    {"about": {"source": "x"}, "classes": {"2": {"name": "dik", "descriptions": ["c"]}, "0": {"descriptions": ["a"]}, "1": {"descriptions": "b"}}},
])
def test_descriptions_of_every_shape_and_order(tmp_path, content):
    assert describe.load_descriptions(write(tmp_path, content), CLASSES) == [["a"], ["b"], ["c"]]


def test_key_and_name_of_one_class_are_a_repetition(tmp_path):
    content = {"0": "a", "crane": "x", "1": "b", "2": "c"}
    with pytest.raises(drm_min.BadInput, match="'0' repeated"):
        describe.load_descriptions(write(tmp_path, content), CLASSES)


def test_order_of_the_file_changes_no_head(clip, tmp_path):
    model, tokenizer = clip
    heads = [drm_min.build_head(model, drm_min.tokenize(tokenizer, describe.load_descriptions(
        write(tmp_path, dict(sorted(GOOD.items(), reverse=r))), {k: k for k in GOOD}))) for r in (False, True)]
    assert torch.equal(*heads)
