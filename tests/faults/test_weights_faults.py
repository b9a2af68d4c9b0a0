"""Weights, checkpoints and saved models that are damaged or lie: one line, exit code 2, nothing is lost."""

import struct

import pytest
import torch
from conftest import CLASSES, DRM, NAME, TEXT, VISION, argv, run
from place import (
    LONG_TEXT,
    NEST,
    PROMPTS,
    contents,
    counted,
    ends_in_one_line,
    entries,
    in_best,
    in_history,
    in_optimizer,
    in_progress,
    in_weights,
    one_line,
    place_for_faults,  # noqa: F401  the fixture `place`
    saved_by_torch,
    within,
)

import drm_min

pytestmark = pytest.mark.usefixtures("one_thread", "one_tokenizer")


def first(n, state):
    """The first few of the entries of a dict."""
    return dict(list(state.items())[:n])


def self_holding():
    state = {}
    state["model"] = state
    return state


def written(content):
    """Damage to a checkpoint: its drm.json has this content."""
    content = content if isinstance(content, bytes) else content.encode()
    return lambda step: (step / "drm.json").write_bytes(content)


def a_folder_for_drm(step):
    (step / "drm.json").unlink()
    (step / "drm.json").mkdir()


def in_column(name, value):
    """Damage to a checkpoint: the last row of its history has this value in a column."""

    def change(lines):
        lines[-1][lines[0].index(name)] = value
        return lines

    return in_history(change)


def without_moments(state):
    return {number: {"step": of_one["step"]} for number, of_one in state.items()}


def without_steps(state):
    return {number: {k: v for k, v in of_one.items() if k != "step"} for number, of_one in state.items()}


def of_other_shape(state):
    return {number: {k: torch.zeros(3) for k in of_one} for number, of_one in state.items()}


def prompts_of_long_texts(head):
    return PROMPTS | {head: {c: [LONG_TEXT] for c in CLASSES}}


def a_file_for_the_model(place):
    command = place.evaluate()
    return command[:-1] + [f"local-dir:{place.write('m', 'x')}"]


TOO_LONG = '{"seed": ' + "9" * 5000 + "}"
# area -> name -> (builder, words that the line must hold)
FAULTS = {
    "weights": {
        "an empty file": (lambda p: p.model(None, weights=b""), ["--model", "cannot load"]),
        "a header longer than the file": (
            lambda p: p.model(None, weights=b"\xff" * 8 + b"{}"),
            ["--model", "header"],
        ),
        "a header of brackets": (
            lambda p: p.model(None, weights=struct.pack("<Q", 100_000) + NEST.encode()),
            ["--model", "header"],
        ),
        "tensors too few": (lambda p: p.model(None, weights=first(5, p.state())), ["--model", "Missing key"]),
        "no tensors": (lambda p: p.model(None, weights={}), ["--model", "cannot load"]),
        "weights that are no numbers": (lambda p: p.spoilt(float("nan")), ["--model"]),
        "weights that are no numbers, in training": (lambda p: p.spoilt(float("nan"), "erm"), ["--model"]),
        "weights that are infinite": (lambda p: p.spoilt(float("inf")), ["--model"]),
        "a list for a config": (lambda p: p.model(None, config=[1]), ["--model", "cannot load"]),
        "a config of brackets": (lambda p: p.model(None, config=NEST), ["--model", "cannot load"]),
        "a config that is no text": (lambda p: p.model(None, config=b"\xff\xfe"), ["--model", "cannot load"]),
        "a config with a number for a model": (lambda p: p.config(model_cfg=3), ["--model", "cannot load"]),
        "a negative width": (lambda p: p.shape(embed_dim=-1), ["--model", "-1"]),
        "a width that no memory holds": (lambda p: p.shape(embed_dim=10**13), ["--model", "memory"]),
        "a picture smaller than its patch": (
            lambda p: p.shape(vision_cfg=VISION | dict(image_size=7)),
            ["--model"],
        ),
        "a tower that nobody knows": (
            lambda p: p.shape(vision_cfg=dict(timm_model_name="nope", image_size=32)),
            ["--model", "nope"],
        ),
        "a context of two tokens": (
            lambda p: p.shape(text_cfg=TEXT | dict(context_length=2)),
            ["default prompts", "2 at most"],
        ),
        "an unknown interpolation": (
            lambda p: p.config(preprocess_cfg=dict(interpolation="odd")),
            ["--model", "odd"],
        ),
        "a text for a mean": (lambda p: p.config(preprocess_cfg=dict(mean="x")), ["--model"]),
        "QuickGELU of a third kind": (
            lambda p: p.model(None, drm='{"quick_gelu": "yes"}'),
            ["--model", "QuickGELU"],
        ),
        "drm.json of brackets": (lambda p: p.model(None, drm=NEST), ["drm.json", "JSON"]),
        "a folder of weights": (lambda p: p.run(model=NAME, pretrained=p.root), ["--pretrained", NAME]),
        "an archive that is none": (
            lambda p: p.pretrained(b"PK\x03\x04", "w.npz"),
            ["--pretrained", "w.npz"],
        ),
        "a state dict that holds itself": (
            lambda p: p.pretrained(self_holding()),
            ["--pretrained", "w.pt"],
        ),
        "numbers for tensors": (
            lambda p: p.pretrained(dict.fromkeys(p.state(), 3)),
            ["--pretrained", "w.pt"],
        ),
        "an archive without its end": (
            lambda p: p.pretrained(saved_by_torch(p.state())[:-1000]),
            ["--pretrained", "w.pt"],
        ),
        "garbage that is called safetensors": (
            lambda p: p.pretrained(b"x", "w.safetensors"),
            ["--pretrained", "w.safetensors"],
        ),
        "tensors without values": (
            lambda p: p.pretrained({k: v.to("meta") for k, v in p.state().items()}),
            ["--model", NAME],
        ),
    },
    "--resume": {
        "no losses": (lambda p: p.resume(in_column("loss", "")), ["step-3", "damaged"]),
        "losses of fewer steps": (lambda p: p.resume(in_history(lambda lines: lines[:1])), ["step-3"]),
        "losses of more steps": (
            lambda p: p.resume(in_history(lambda lines: lines + lines[-1:] * 47)),
            ["step-3"],
        ),
        "a text for losses": (lambda p: p.resume(in_column("loss", "abc")), ["step-3"]),
        "a history without its header": (
            lambda p: p.resume(in_history(lambda lines: lines[1:])),
            ["step-3", "damaged"],
        ),
        "a number for the best": (lambda p: p.resume(in_best(lambda best: 3)), ["step-3", "damaged"]),
        "a text for the best epoch": (
            lambda p: p.resume(in_best(lambda best: best | {"epoch": "x"})),
            ["step-3", "damaged", "'x'"],
        ),
        "a text for the best score": (
            lambda p: p.resume(in_best(lambda best: best | {"score": "high"})),
            ["step-3", "damaged", "'high'"],
        ),
        "no prompts": (lambda p: p.resume(prompts=None), ["step-3", "prompts"]),
        "a list for the recipe": (lambda p: p.resume(recipe=[]), ["step-3", "another dataset, model"]),
        "drm.json of brackets": (lambda p: p.resume(written(NEST)), ["drm.json", "JSON"]),
        "drm.json that is no text": (lambda p: p.resume(written(b"\xff")), ["drm.json", "JSON"]),
        "a number of 5000 digits": (lambda p: p.resume(written(TOO_LONG)), ["drm.json", "JSON"]),
        "a folder for drm.json": (lambda p: p.resume(a_folder_for_drm), ["drm.json"]),
        "an optimizer of another shape": (lambda p: p.resume(in_optimizer(of_other_shape)), ["step-3"]),
        "an optimizer of no step": (lambda p: p.resume(in_optimizer(lambda state: {})), ["step-3"]),
        "an optimizer of other names": (
            lambda p: p.resume(in_optimizer(lambda state: {"a.b.c": torch.zeros(2)})),
            ["step-3", "damaged"],
        ),
        "an optimizer without its steps": (
            lambda p: p.resume(in_optimizer(without_steps)),
            ["step-3", "damaged"],
        ),
        "an optimizer without its moments": (
            lambda p: p.resume(in_optimizer(without_moments)),
            ["step-3", "damaged"],
        ),
        "a list for the progress": (lambda p: p.resume(in_progress(lambda _: [1])), ["step-3", "damaged"]),
        "best weights of another model": (
            lambda p: p.resume(in_best(lambda best: best | {"state": first(4, best["state"])})),
            ["step-3"],
        ),
        "weights of another shape": (
            lambda p: p.resume(in_weights(lambda state: {k: torch.zeros(2) for k in state})),
            ["step-3", "damaged"],
        ),
        "a checkpoint without files": (
            lambda p: p.resume(lambda step: step.with_name("step-7").mkdir()),
            ["step-7", "drm.json"],
        ),
    },
    "--eval-only": {
        "a seed between two numbers": (lambda p: p.evaluate(None, "toy", seed=0.5), ["drm.json"]),
        "a beta that is no number": (lambda p: p.evaluate(beta=float("nan")), ["drm.json"]),
        "a beta that is true": (lambda p: p.evaluate(beta=True), ["drm.json"]),
        "no lambda, and not of wrm": (lambda p: p.evaluate(lam=None), ["drm.json"]),
        "a list for an estimator": (lambda p: p.evaluate(estimator=["softmax"]), ["drm.json"]),
        "one model of an ensemble": (lambda p: p.evaluate(method="ensemble"), ["drm.json"]),
        "a lambda of 400 digits": (lambda p: p.evaluate(lam=10**400), ["drm.json"]),
        "a number of 5000 digits": (lambda p: p.evaluate(TOO_LONG), ["drm.json", "JSON"]),
        "drm.json of brackets": (lambda p: p.evaluate(NEST), ["drm.json", "JSON"]),
        "UTF-16": (lambda p: p.evaluate("{}".encode("utf-16")), ["drm.json", "JSON"]),
        "prompts of other classes": (
            lambda p: p.evaluate(prompts={head: {"yak": ["yak"]} for head in PROMPTS}),
            ["other classes"],
        ),
        "default prompts longer than the context": (
            lambda p: p.evaluate(prompts=prompts_of_long_texts("default")),
            ["92 tokens"],
        ),
        "concept prompts longer than the context": (
            lambda p: p.evaluate(prompts=prompts_of_long_texts("concept")),
            ["92 tokens", "--model"],
        ),
        "a file for the folder": (a_file_for_the_model, ["drm.json"]),
    },
}


@pytest.mark.parametrize("area, build, said", entries(FAULTS))
def test_bad_input_ends_in_one_line_and_costs_nothing(place, capfd, area, build, said):
    ends_in_one_line(place, capfd, area, build, said)


@counted("--resume")
def test_a_finished_model_without_its_history_is_refused_when_a_run_goes_on(place, capfd):
    """It is beside good weights, and seconds and losses are read of it."""
    out = place.root / "new"
    run(out, place.world)
    in_history(lambda lines: lines[:1])(out / DRM / "model")
    before = contents(out)
    capfd.readouterr()
    with within(8):
        assert drm_min.main(argv(out, place.world) + ["--resume"]) == 2
    one_line("drm_min.py", capfd.readouterr(), [f"{DRM}/model", "damaged"])
    assert contents(out) == before
