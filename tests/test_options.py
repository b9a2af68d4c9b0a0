"""The command line: help, values, and that every option is heard."""

import dataclasses
import re

import pytest
from conftest import DRM, evaluation, run

import drm_min
from drm_min import Config
from support.errors import BadInput
from support.options import OF_EVALUATION, flag, kind_of

GROUPS = ["options", "data", "method", "training", "model and texts", "machine and files"]


@pytest.fixture
def help_page(capsys):
    with pytest.raises(SystemExit) as stopped:
        drm_min.main(["--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_help_is_a_page_that_names_every_option(help_page):
    assert len(help_page.splitlines()) < 95
    names = ("dataset", "method", "lam", "beta", "sweep", "alpha", "core-targets", "loss", "seed", "seeds")
    names += ("epochs", "batch-size", "lr", "weight-decay", "model", "pretrained", "descriptions", "device")
    for name in (*names, "out"):
        assert f"--{name} " in help_page
    for field in dataclasses.fields(Config):
        assert re.search(rf"^  {flag(field.name)}\b", help_page, re.M), field.name


def test_help_was_one_list_of_options_without_groups(help_page):
    assert re.findall(r"^([a-z ]+):$", help_page, re.M) == GROUPS
    listed = re.findall(r"^  (--[a-z-]+)", help_page, re.M)
    assert len(listed) == len(set(listed)) == len(dataclasses.fields(Config)) <= 34


HEARD = [
    ["--lam", "2"],
    ["--beta", "0.9"],
    ["--core-targets", "label"],
    ["--core-targets", "normalized"],
    ["--core-targets", "softmax"],
    ["--core-targets", "bootstrap"],
    ["--core-targets", "onehot"],
    ["--core-targets", "oracle"],
    ["--loss", "flyp"],
    ["--seed", "1"],
    ["--lr", "1e-4"],
    ["--weight-decay", "5"],
    ["--alpha", "0.5"],
]


@pytest.fixture(scope="module")
def of_defaults(short):
    [row] = short("--method", "drm")["results"]
    return row["summary"]


@pytest.mark.parametrize("words", HEARD, ids=lambda words: " ".join(words))
def test_every_option_is_heard(short, of_defaults, words):
    [row] = short("--method", "drm", *words)["results"]
    assert row["summary"] != of_defaults
    assert row["beta"] == {"--beta": 0.9, "--lam": 1 / 3}.get(words[0], 0.5)


def test_values_that_tables_and_folders_could_not_tell_apart_are_refused():
    for option in (dict(sweep=(0.12345671, 0.12345672)), dict(alpha=(0.50000001, 0.5))):
        with pytest.raises(BadInput, match="six digits"):
            Config(**option)


# ------------------------------------------------------------------------------------------- --eval-only

NOT_HEARD = [field for field in dataclasses.fields(Config) if field.name not in OF_EVALUATION]


def other_value(field):
    """A good value of an option that is not its default, as words of a command line."""
    choices = field.metadata["choices"]
    if choices:
        return [next(choice for choice in choices if choice != field.default)]
    kind, _ = kind_of(field)
    if kind is bool:
        return []
    return {int: ["7"], float: ["0.25"], str: ["a {}"]}[kind]


def test_most_options_are_of_training():
    heard = {"dataset", "data_root", "model", "beta", "device", "precision", "workers", "out", "eval_only"}
    heard |= {"overwrite"}
    assert {field.name for field in dataclasses.fields(Config)} - heard == {f.name for f in NOT_HEARD}


@pytest.mark.parametrize("field", NOT_HEARD, ids=lambda field: field.name)
def test_eval_only_did_not_hear_an_option_and_did_not_say_so(field, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    words = ["--eval-only", "--model", "local-dir:toy/clip", flag(field.name), *other_value(field)]
    assert drm_min.main(words) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and [*tmp_path.iterdir()] == []
    assert err.startswith(f"drm_min.py: --eval-only {flag(field.name)}: "), err
    assert "--data-root" in err and f"{flag(field.name)}," not in err.partition("allowed beside it")[2]


def test_eval_only_hears_beta_and_where_things_are(world, tmp_path):
    run(tmp_path, world, epochs=1)
    model = tmp_path / DRM / "model"
    for more in (dict(), dict(beta=0.9), dict(beta=0.0, precision="bf16", out="x")):
        [row] = drm_min.run(evaluation(world, model, **more))["results"]
        assert row["beta"] == more.get("beta", 0.5)
    with pytest.raises(BadInput, match="--data-root nowhere"):
        drm_min.run(evaluation(world, model, data_root="nowhere"))
