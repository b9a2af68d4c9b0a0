"""Evaluation: WiSE-FT, both heads from one pass, metrics by hand."""

import copy
import math

import open_clip
import pytest
import torch
from conftest import VIT, equal, evaluated, options, run, weights

import drm_min
from drm_min import Config, Job, Prompts, Split, encode_images, interpolate_weights, metrics, train
from support.errors import BadInput
from support.weights import load_clip

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def small(toy):
    """The toy data, a few images of each split."""
    first = torch.arange(96)
    tests = {name: split.take(first) for name, split in toy.tests.items()}
    return toy._replace(train=toy.train.take(first), val=toy.val.take(first), tests=tests)


def state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


# --------------------------------------------------------------------------------------------------- WiSE-FT


def test_interpolation_gives_the_ends_and_touches_neither_source(clip, small, prompts):
    zero_shot, fine_tuned = copy.deepcopy(clip[0]), copy.deepcopy(clip[0])
    job, config = Job("erm", 0, ("default",)), Config(epochs=3, batch_size=96)
    train(fine_tuned, small.train, prompts, None, job, config)
    start, end = state(zero_shot), state(fine_tuned)
    for alpha, expected in ((0.0, start), (1.0, end)):
        got = interpolate_weights(zero_shot, fine_tuned, alpha).state_dict()
        assert all(torch.equal(got[k], expected[k]) for k in expected)
    half = interpolate_weights(zero_shot, fine_tuned, 0.5)
    middle = (start["text_projection"] + end["text_projection"]) / 2
    assert torch.allclose(half.text_projection, middle)
    assert not torch.equal(start["text_projection"], end["text_projection"])
    half.text_projection.data.zero_()
    for model, kept in ((zero_shot, start), (fine_tuned, end)):
        assert all(torch.equal(model.state_dict()[k], kept[k]) for k in kept)


# -------------------------------------------------------------------------------------- evaluate and predict


@pytest.mark.parametrize("training", [False, True])
def test_evaluating_twice_gives_one_answer_and_leaves_the_mode(clip, small, prompts, training):
    model = copy.deepcopy(clip[0]).train(training)
    before = state(model)
    first, second = (evaluated(model, small, prompts, (1.0, 0.5)) for _ in range(2))
    assert first == second and model.training is training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_one_pass_of_the_image_encoder_serves_both_heads(clip, small, prompts):
    model, passes = copy.deepcopy(clip[0]), []
    model.visual.register_forward_hook(lambda module, args, out: passes.append(len(out)))
    evaluated(model, small, prompts, (1.0, 0.0, 0.3, 0.5))
    assert passes == [96] * 5  # validation and four domains, each once


def test_log_loss_is_finite_where_single_precision_would_underflow(monkeypatch):
    """Affinities of 1 and -1 at scale 100: the log loss is 200 nats, not infinite."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.logit_scale = torch.nn.Parameter(torch.tensor(math.log(100)))
            self.visual = torch.nn.Identity()
            self.visual.image_size = 4

    monkeypatch.setattr(drm_min, "image_features", lambda model, images: torch.tensor([[1.0, 0.0]]))
    monkeypatch.setattr(drm_min, "build_head", lambda model, texts: torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    split = Split(torch.zeros(1, 3, 4, 4), torch.tensor([1]))
    p, _ = drm_min.predict(Model(), split, Prompts(None, None))
    assert metrics(p, split)["log_loss"] == pytest.approx(200, abs=0.01)


def test_probabilities_that_are_not_finite_stop_the_run(clip, small, prompts):
    model = copy.deepcopy(clip[0])
    model.text_projection.data.fill_(math.nan)
    with pytest.raises(BadInput, match="not finite"):
        evaluated(model, small, prompts, (0.5,))


def test_pictures_are_brought_to_the_size_that_the_model_sees():
    torch.manual_seed(0)
    parts = open_clip.CLIPVisionCfg(**VIT["vision_cfg"]), open_clip.CLIPTextCfg(**VIT["text_cfg"])
    model = open_clip.CLIP(16, *parts).eval()  # 32 pixels
    open_clip.model.set_model_preprocess_cfg(model, dict(mean=(0.5,) * 3, std=(0.5,) * 3))
    split = Split(torch.zeros(2, 3, 48, 48, dtype=torch.uint8), torch.zeros(2))
    assert encode_images(model, split).shape == (2, 16)


# ------------------------------------------------------------------------------ one training, three readings


@pytest.fixture
def trained(monkeypatch):
    """The method of each training."""
    trained, really_train = [], drm_min.train

    def noted(model, split, prompts, targets, job, *rest):
        trained.append(job.method)
        return really_train(model, split, prompts, targets, job, *rest)

    monkeypatch.setattr(drm_min, "train", noted)
    return trained


def measured(p_default, p_concept, beta, data, domains):
    """Rows of results by hand: (validation, domains) of a mixture, {split: (N, C)} of two heads."""
    p = {name: beta * p_default[name] + (1 - beta) * p_concept[name] for name in p_default}
    return metrics(p["val"], data.val), {name: metrics(p[name], data.tests[name]) for name in domains}


def test_erm_its_two_heads_mixed_and_the_ensemble_are_of_one_training_and_equal_mixtures_by_hand(
    world, tmp_path, trained
):
    more = dict(method=("ensemble", "erm-mixed", "zero-shot", "erm"), lam=3.0, alpha=(0.5, 1.0))
    rows = run(tmp_path, world, **more)["results"]
    assert trained == ["erm"] and [p.name for p in tmp_path.glob("*-seed-*")] == ["erm-seed-0"]
    told = [(row["method"], row["alpha"], row["beta"]) for row in rows]
    assert told[:3] == [("zero-shot", 0, beta) for beta in (1, 0, 0.25)]
    of_erm = [("erm", 1), ("erm-mixed", 0.25), ("ensemble", 0.25)]
    assert told[3:] == [(method, alpha, beta) for alpha in (0.5, 1) for method, beta in of_erm]
    assert {(row["lam"], row["estimator"], row["core_targets"]) for row in rows[3:]} == {(0, None, None)}

    setup = drm_min.set_up(Config(**options(tmp_path, world, **more)))
    fine_tuned, _ = load_clip(f"local-dir:{tmp_path / 'erm-seed-0' / 'model'}")
    assert not equal(weights(world / "vit"), fine_tuned.state_dict())
    half = interpolate_weights(setup.zero_shot, fine_tuned, 0.5)
    splits = {"val": setup.data.val, "sketch": setup.data.tests["sketch"]}

    def heads(model):
        p = {name: drm_min.predict(model, split, setup.prompts) for name, split in splits.items()}
        return [{name: both[i] for name, both in p.items()} for i in (0, 1)]

    _, concept_before = heads(setup.zero_shot)
    by_hand = []
    for model in (half, fine_tuned):
        default, concept = heads(model)
        for p_concept, beta in ((concept, 1.0), (concept, 0.25), (concept_before, 0.25)):
            by_hand.append(measured(default, p_concept, beta, setup.data, rows[0]["domains"]))
    assert [(row["validation"], row["domains"]) for row in rows[3:]] == by_hand
    assert len({row["domains"]["sketch"]["log_loss"] for row in rows}) == 3 + 6


@pytest.mark.parametrize("method", ["erm", "erm-mixed", "ensemble"])
def test_a_reading_of_erm_is_the_same_whether_or_not_others_are_asked_for(world, tmp_path, trained, method):
    def without_seconds(rows):
        return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]

    rows = run(tmp_path / "all", world, method=("erm", "erm-mixed", "ensemble"), beta=0.3)["results"]
    alone = run(tmp_path / "one", world, method=method, beta=0.3)["results"]
    assert without_seconds(alone) == without_seconds(row for row in rows if row["method"] == method)
    assert trained == ["erm", "erm"] and [row["beta"] for row in rows] == [1.0, 0.3, 0.3]
    assert [p.name for p in (tmp_path / "one").glob("*-seed-*")] == ["erm-seed-0"]


def test_the_ensemble_of_every_seed_is_with_the_zero_shot_model_on_the_images_of_that_seed(
    tmp_path, monkeypatch
):
    """The toy world draws anew: predictions of another seed's images would fit no label."""
    whole = drm_min.load_data

    def few(config, seed):
        data = whole(config, seed)
        some = torch.arange(200)
        tests = {name: split.take(some) for name, split in data.tests.items()}
        return data._replace(train=data.train.take(some), val=data.val.take(some), tests=tests)

    monkeypatch.setattr(drm_min, "load_data", few)
    more = dict(method=("ensemble", "zero-shot"), epochs=1, batch_size=100, beta=0.0, device="cpu", seeds=2)
    rows = drm_min.run(Config(**more), tmp_path)["results"]
    assert [(row["method"], row["seed"]) for row in rows] == [
        (method, seed) for seed in (0, 1) for method in ("zero-shot", "zero-shot", "ensemble")
    ]
    for zero_shot, both in ((rows[1], rows[2]), (rows[4], rows[5])):
        assert zero_shot["beta"] == both["beta"] == 0 and zero_shot["domains"] == both["domains"]
    assert rows[1]["domains"] != rows[4]["domains"]


def test_a_validation_split_that_is_also_a_test_is_read_once_and_found_under_its_name(clip, small, prompts):
    model, passes = copy.deepcopy(clip[0]), []
    model.visual.register_forward_hook(lambda module, args, out: passes.append(len(out)))
    [row] = evaluated(model, small._replace(tests={"own": small.val}), prompts, (0.5,))
    assert passes == [96] and row["domains"]["own"] == row["validation"]


# ---------------------------------------------------------------------------------------------------- metrics


def test_metrics_by_hand():
    p = torch.tensor([[0.7, 0.3], [0.4, 0.6], [0.9, 0.1], [0.2, 0.8]], dtype=torch.double)
    seen = torch.tensor([True, True, True, False])
    groups = {"seen": seen, "empty": torch.zeros(4, dtype=torch.bool)}
    got = metrics(p, Split(torch.zeros(4), torch.tensor([0, 1, 1, 1]), groups=groups))
    assert got["accuracy"] == 0.75 and got["n"] == 4
    log_loss = -(math.log(0.7) + math.log(0.6) + math.log(0.1) + math.log(0.8)) / 4
    assert got["log_loss"] == pytest.approx(log_loss)
    assert got["accuracy_seen"] == pytest.approx(2 / 3) and got["n_seen"] == 3
    assert "accuracy_empty" not in got  # no images, no accuracy: neither 0 nor NaN


def test_heads_of_a_model_in_training_were_built_in_training_mode(clip, small, prompts, monkeypatch):
    """Validation amid training: dropout in a text tower would have had a part in the score."""
    model, build, modes = copy.deepcopy(clip[0]).train(), drm_min.build_head, []
    monkeypatch.setattr(drm_min, "build_head", lambda m, texts: modes.append(m.training) or build(m, texts))
    drm_min.predict(model, small.val, prompts)
    assert modes == [False, False] and model.training
