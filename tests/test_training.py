"""Training: both towers move, the learning rate, what saves memory and time, precision, chance, refusals."""

import copy
import math
import shutil

import pytest
import torch
from conftest import CLASSES, DRM, argv, equal, options, run, weights

import drm_min
from drm_min import Config, Job, Split, build_head, image_features, logit_scale, train
from support.errors import BadInput
from support.images import ImageFiles
from support.settings import RECIPES
from support.texts import prompts_of
from support.weights import load_clip, mixed_precision

pytestmark = pytest.mark.usefixtures("one_thread")

BOTH = ("default", "concept")
HEADS = {"erm": ("default",), "drm": BOTH, "wrm": ("concept",)}


@pytest.fixture(scope="module")
def small(toy):
    """A few training images of the toy world."""
    return toy.train.take(torch.arange(96))


def uniform(batch):
    """Core targets that know nothing."""
    return torch.full((len(batch), 8), 1 / 8)


def trained(clip, split, prompts, method="erm", loss="ce", steps=1, **config):
    """A copy of the tiny CLIP after some steps, each on all images -> (model, losses)."""
    model, job = copy.deepcopy(clip[0]), Job(method, 0, HEADS[method], loss=loss)
    config = Config(epochs=steps, batch_size=96, **config)
    return model, train(model, split, prompts, uniform, job, config)


def gradients(model, *args):
    """batch_gradients -> (its three losses, the gradient of every parameter that has one)."""
    model.zero_grad()
    losses = drm_min.batch_gradients(model, *args)
    return losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# ------------------------------------------------------------------------------------------------- the steps


@pytest.mark.parametrize("loss", ["ce", "flyp"])
@pytest.mark.parametrize("method", HEADS)
def test_one_step_moves_both_towers(clip, small, prompts, method, loss):
    model, losses = trained(clip, small, prompts, method, loss)
    before, after = clip[0].state_dict(), model.state_dict()
    visual = ("visual.trunk.stem.0.weight", "visual.head.proj.weight")
    text = ("transformer.resblocks.0.mlp.c_fc.weight", "text_projection")
    for part in (*visual, *text, "logit_scale"):
        assert not torch.equal(before[part], after[part]), part
    assert len(losses) == 1 and not model.training


@pytest.mark.parametrize("loss", ["ce", "flyp", "flyp-released"])
def test_training_lowers_the_loss_on_its_images(clip, small, prompts, loss):
    losses = trained(clip, small, prompts, "erm", loss, steps=20)[1]
    assert sum(losses[-3:]) < sum(losses[:3])


def test_released_flyp_is_flyp_loss_on_one_text_an_image(clip, small, prompts):
    """Each image against the texts of all images of its batch, also where two of them are of one class."""
    model, _ = clip
    _, [loss] = trained(clip, small, prompts, "erm", "flyp-released")
    with torch.no_grad():
        texts = build_head(model, prompts.default)[small.labels]  # (B, D)
        logits = logit_scale(model) * image_features(model, small.images) @ texts.T
    assert loss == pytest.approx(drm_min.contrastive_loss(logits, torch.eye(96)).item(), abs=1e-5)


def flyp_by_itself(model, images, labels, texts, epochs, batch_size, lr, warmup, decay, seed):
    """FLYP's loop, written from its description and not from ours -> losses.

    texts[c, i]: tokens (L,) of class c in template i.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=decay)
    of_epoch = math.ceil(len(images) / batch_size)
    total, losses = epochs * of_epoch, []
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        shuffled = torch.randperm(len(images), generator=order)
        for i in range(of_epoch):
            step = len(losses)
            rate = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
            optimizer.param_groups[0]["lr"] = lr * ((step + 1) / warmup if step < warmup else rate)
            batch = shuffled[i * batch_size : (i + 1) * batch_size]
            torch.manual_seed(seed * 1_000_003 + step)
            template = torch.randint(texts.shape[1], (len(batch),))
            seen = image_features(model, images[batch])
            said = model.encode_text(texts[labels[batch], template], normalize=True)
            logits = model.logit_scale.exp() * seen @ said.T
            right = torch.arange(len(batch))
            by_image, by_text = (torch.nn.functional.cross_entropy(of, right) for of in (logits, logits.T))
            loss = (by_image + by_text) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def test_forty_steps_of_flyp_are_those_of_an_independent_loop(clip, toy):
    """Another decay, clamp, schedule, last batch or text of an image would show."""
    model, tokenizer = clip
    says = ("a photo of a {}.", "a small {}.", "the {} in the wild.")
    names = [[say.format(name) for say in says] for name in toy.classes.values()]
    texts = drm_min.tokenize(tokenizer, names)
    split, seed = toy.train.take(torch.arange(100)), 3
    config = Config(epochs=10, batch_size=32, lr=1e-3, warmup=4, weight_decay=0.3, select="last")
    job = Job("flyp", seed, ("default",), 0.0, 1.0, None, "flyp-released")
    ours, theirs = copy.deepcopy(model), copy.deepcopy(model).train()
    for either in (ours, theirs):
        either.logit_scale.data.fill_(math.log(100))  # where a clamp would act
    losses = train(ours, split, drm_min.Prompts(texts, None), None, job, config)
    tokens = texts.tokens.view(8, 3, -1)
    expected = flyp_by_itself(theirs, split.images, split.labels, tokens, 10, 32, 1e-3, 4, 0.3, seed)
    assert len(losses) == 40 and losses == pytest.approx(expected, abs=1e-5)
    for (name, a), (_, b) in zip(ours.state_dict().items(), theirs.state_dict().items()):
        if name.endswith("in_proj_bias"):  # the keys' bias has no gradient but rounding, which Adam enlarges
            (a, _, c), (b, _, d) = a.chunk(3), b.chunk(3)
            a, b = torch.cat([a, c]), torch.cat([b, d])
        assert torch.allclose(a, b, atol=1e-4), name
    assert ours.logit_scale != model.logit_scale


def test_flyp_draws_from_80_templates_of_imagenet_unless_others_are_asked_for(clip, tmp_path, monkeypatch):
    (tmp_path / "d.json").write_text('{"n0": "a fish", "n1": "a bird"}')
    classes = {f"n{i}": name for i, name in enumerate(("tench", "crane"))}
    split = Split(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1]))
    data = drm_min.Data(classes, split, split, {"val": split})
    seen = []
    monkeypatch.setattr(drm_min, "train", lambda model, split, prompts, *_: seen.append(prompts))
    for more, templates in ((dict(), 80), (dict(template=("a {}.",)), 1)):
        config = Config(dataset="imagenet", data_root=".", descriptions=str(tmp_path / "d.json"), **more)
        setup = drm_min.Setup(config, None, data, *clip)
        monkeypatch.setattr(drm_min, "predict_all", lambda *_: {})
        monkeypatch.setattr(drm_min, "rows_of", lambda *_: [])
        monkeypatch.setattr(drm_min.Checkpoints, "seconds", lambda _: 0)
        [job] = drm_min.jobs_of("flyp", config, 0)
        drm_min.fine_tune(job, drm_min.with_texts(setup, prompts_of(config, classes)))
        assert len(seen.pop().default.owner) == 2 * templates
    assert "flyp_template" not in RECIPES["iwildcam"]


@pytest.mark.parametrize("start, kept", [(math.log(100), math.log(100)), (6.0, 6.0)])
def test_logit_scale_does_not_rise_above_100_or_its_start(clip, small, prompts, monkeypatch, start, kept):
    """SigLIP's starts above 100 and stays."""

    def only_scale(features, head, _, scale, *rest):
        return (0 * (features.sum() + head.sum()) - scale,) * 3

    monkeypatch.setattr(drm_min, "dual_loss", only_scale)
    model = copy.deepcopy(clip[0])
    model.logit_scale.data.fill_(start)
    model, _ = trained((model,), small, prompts, steps=3)
    assert model.logit_scale.item() == pytest.approx(kept)


def test_logit_scale_does_not_fall_below_1(clip, small, prompts):
    model = copy.deepcopy(clip[0])
    model.logit_scale.data.fill_(-1.0)
    model, _ = trained((model,), small, prompts)
    assert model.logit_scale.item() == 0


def test_weight_decay_shrinks_matrices_and_spares_vectors_and_the_logit_scale(
    clip, small, prompts, monkeypatch
):
    """A loss without gradient leaves decay alone to act."""

    def nothing(features, head, _, scale, *rest):
        return (0 * (features.sum() + head.sum() + scale),) * 3

    monkeypatch.setattr(drm_min, "dual_loss", nothing)
    model, _ = trained(clip, small, prompts, lr=0.1, weight_decay=0.5)
    before, after = clip[0].state_dict(), model.state_dict()
    shrunk = 0.95 * before["text_projection"]  # 1 - lr * weight decay
    assert torch.allclose(after["text_projection"], shrunk)
    for name in ("logit_scale", "ln_final.weight", "visual.trunk.stem.0.bias"):
        assert torch.equal(after[name], before[name]), name


def test_learning_rate_warms_up_and_falls_along_a_cosine(clip, small, prompts, monkeypatch):
    rates, step = [], torch.optim.AdamW.step

    def noted(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        assert {group["lr"] for group in self.param_groups} == {rates[-1]}
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    trained(clip, small, prompts, steps=40, lr=1e-3)
    assert rates[:4] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3])  # a tenth of 40 steps
    falling = [(1 + math.cos(math.pi * i / 37)) / 2 * 1e-3 for i in range(36)]
    assert rates[4:] == pytest.approx(falling)  # 0 would be the step after the last


def test_a_loss_that_is_not_finite_stops_and_names_the_step(clip, small, prompts):
    with pytest.raises(BadInput, match=r"--lr 1000000000.0: the loss of step \d+ is (nan|inf)"):
        trained(clip, small, prompts, steps=5, lr=1e9)


def test_the_weights_of_the_epoch_with_the_best_score_are_kept(clip, small, prompts):
    """Of two that are equal, the first; a step is half an epoch."""
    model, job, states = copy.deepcopy(clip[0]), Job("erm", 0, ("default",)), []

    def score(model):
        states.append({k: v.clone() for k, v in model.state_dict().items()})
        return (0.1, 0.3, 0.3, 0.2)[len(states) - 1]

    config = Config(epochs=4, batch_size=48, select="best")
    assert len(train(model, small, prompts, None, job, config, score)) == 8
    assert len(states) == 4 and equal(states[1], model.state_dict())
    assert not equal(states[1], states[2])


def test_without_select_best_no_epoch_is_scored(clip, small, prompts):
    job, config = Job("erm", 0, ("default",)), Config(epochs=2, batch_size=96, select="last")
    train(copy.deepcopy(clip[0]), small, prompts, None, job, config, lambda model: pytest.fail("scored"))


def test_chance_is_another_one_at_every_step(world, monkeypatch):
    """A model that sees half of its patches, drawn at random, and stays as it is; every batch is the same."""
    g = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (6, 3, 32, 32), generator=g, dtype=torch.uint8)
    split = Split(pictures, torch.tensor([0, 1, 2, 0, 1, 2]), crop=1.0)
    monkeypatch.setattr(drm_min, "shuffled_batches", lambda n, *_, **__: [torch.arange(n)] * 4)
    job, losses = Job("erm", 0, ("default",)), {}
    for shape in ("dropped", "vit"):
        config = Config(**options(world, world, shape, lr=0.0, epochs=4))
        model, tokenizer = load_clip(config.model)
        texts = drm_min.tokenize(tokenizer, [[f"a {name}"] for name in CLASSES])
        losses[shape] = train(model, split, drm_min.Prompts(texts, texts), None, job, config)
    assert len(set(losses["dropped"])) == 4 and len(set(losses["vit"])) == 1


# ----------------------------------------------------------------------------- what saves memory and time


def close(a, b, atol):
    return all(torch.allclose(a[k], b[k], rtol=0, atol=atol) for k in a if a[k].is_floating_point())


@pytest.mark.parametrize("saver", [dict(accumulate=2), dict(accumulate=3), dict(grad_checkpointing=True)])
@pytest.mark.parametrize("shape", ["vit", "siglip", "coca"])
def test_what_saves_memory_computes_more_and_gives_the_same_gradient(
    world, tmp_path, monkeypatch, shape, saver
):
    """Seen by plain gradient descent: Adam would make rounding errors around 0 as large as any gradient."""
    work, norm, found = [], torch.nn.functional.layer_norm, []

    def counted(*args, **kwargs):
        work.append(1)
        return norm(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "layer_norm", counted)
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, lr, **_: torch.optim.SGD(groups, lr=lr))
    for more in ({}, saver):
        work.clear()
        run(tmp_path, world, shape, lr=0.1, epochs=1, **more)
        found.append((len(work), weights(tmp_path / DRM / "model")))
    (less, whole), (more, parts) = found
    assert more > less and close(whole, parts, 1e-5)
    assert not close(whole, weights(world / shape), 1e-2)


@pytest.mark.parametrize("n, parts", [(5, 2), (7, 3), (3, 5)])
def test_parts_of_unequal_size_count_as_many_images_as_they_have(clip, toy, prompts, n, parts):
    """5 images in 2 parts are 3 and 2: the mean of two means would be another loss."""
    model, job, batch = copy.deepcopy(clip[0]), Job("drm", 0, BOTH, lam=2.0), torch.arange(n)
    images, labels = toy.train.images[batch], toy.train.labels[batch]

    def core(numbers):
        return torch.nn.functional.one_hot(numbers % 8, 8).float()

    half = mixed_precision("fp32", torch.device("cpu"))
    rest = model, images, labels, batch, prompts, core, job, half
    losses, whole = gradients(*rest, Config())
    in_parts, sums = gradients(*rest, Config(accumulate=parts))
    assert in_parts == pytest.approx(losses, rel=1e-5)
    assert whole.keys() == sums.keys() == dict(model.named_parameters()).keys()
    for name in whole:
        assert (whole[name] - sums[name]).abs().max() <= 1e-4 * whole[name].abs().max() + 1e-7, name


@pytest.mark.parametrize("more", [dict(loss="flyp"), dict(method="flyp"), dict(shape="resnet")])
def test_parts_of_a_batch_are_refused_where_the_batch_counts_as_a_whole(world, tmp_path, more):
    what = "batch norm" if "shape" in more else "contrastive"
    with pytest.raises(BadInput, match=f"--accumulate 2: .*{what}"):
        run(tmp_path, world, accumulate=2, **more)


@pytest.mark.parametrize("shape", ["vit", "resnet"])
def test_checkpointing_was_asked_of_an_image_tower_that_has_none_without_a_word(
    world, tmp_path, capsys, shape
):
    run(tmp_path, world, grad_checkpointing=True, shape=shape)
    assert ("open_clip's ResNets have none" in capsys.readouterr().err) == (shape == "resnet")


def test_half_precision_on_the_cpu_learns_as_float32_does_and_keeps_float32_weights(clip, small, prompts):
    more = dict(steps=5, lr=1e-3)
    _, whole = trained(clip, small, prompts, "drm", precision="fp32", **more)
    model, half = trained(clip, small, prompts, "drm", precision="bf16", **more)
    assert half == pytest.approx(whole, rel=0.02) and half != pytest.approx(whole, rel=1e-5)
    assert half[-1] < 0.9 * half[0]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert trained(clip, small, prompts, "drm", **more)[1] == whole  # auto


def test_half_precision_is_saved_and_told(world, tmp_path, capsys):
    report = run(tmp_path, world, precision="bf16", epochs=1)
    assert {v.dtype for v in weights(tmp_path / DRM / "model").values()} == {torch.float32}
    assert report["about"]["precision"] == "bf16"
    assert "device cpu, precision bf16; to train: 1 x 2 steps" in capsys.readouterr().err


def test_fp16_needs_a_gpu_and_is_refused_before_training(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(drm_min, "train", lambda *args: pytest.fail("training began"))
    assert drm_min.main(argv(tmp_path, world, precision="fp16")) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("drm_min.py:")]
    assert said == ["drm_min.py: --precision fp16: needs a CUDA GPU, not cpu; allowed: auto, fp32, bf16"]


@pytest.mark.parametrize(
    "more, times",
    [
        (dict(method=("zero-shot", "erm", "flyp")), 0),
        (dict(method=("drm", "dual"), core_targets=("onehot",)), 0),
        (dict(method=("ensemble", "erm-mixed")), 0),
        (dict(method=("erm", "wrm", "drm")), 1),
        (dict(method=("wrm", "drm"), core_targets=("onehot", "bootstrap", "normalized")), 1),
        (dict(method="drm", core_targets=("label",), seeds=2), 1),
        (dict(method="erm", skip_bad_images=True), 1),
    ],
)
def test_training_images_are_encoded_before_training_only_where_a_job_needs_it(
    world, tmp_path, monkeypatch, more, times
):
    encoded, encode_images = [], drm_min.encode_images

    def noted(model, split, bad=None):
        encoded.append(len(split))
        return encode_images(model, split, bad)

    monkeypatch.setattr(drm_min, "encode_images", noted)
    run(tmp_path, world, epochs=1, **more)
    assert encoded.count(12) == times and set(encoded) <= {12, 6}  # 12 images of train; val and sketch have 6


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    "n, more, said",
    [
        (0, {}, "0 training images"),
        (4, {}, "one class"),
        (12, dict(loss="flyp", batch_size=1), "--batch-size 1"),
        (12, dict(method="flyp", batch_size=1), "--batch-size 1"),
        (12, dict(skip_bad_images=True), "of 12 images none can be read"),
    ],
)
def test_a_training_that_can_learn_nothing_is_refused_before_it_begins(
    world, tmp_path, monkeypatch, n, more, said
):
    load = drm_min.load_data

    def few(config, seed):
        data = load(config, seed)
        if config.skip_bad_images:  # none of them is a picture
            data.train.images = ImageFiles([str(world / "looks.json")] * 12, workers=0)
        return data._replace(train=data.train.take(torch.arange(n)))

    monkeypatch.setattr(drm_min, "load_data", few)
    monkeypatch.setattr(drm_min, "train", lambda *args: pytest.fail("training began"))
    with pytest.raises(BadInput, match=said):
        run(tmp_path, world, **more)


def test_a_description_file_that_goes_away_in_training_costs_no_results(world, tmp_path, monkeypatch):
    looks, really_train = tmp_path / "looks.json", drm_min.train
    shutil.copy(world / "looks.json", looks)

    def train_and_lose(*args):
        really_train(*args)
        looks.unlink()

    monkeypatch.setattr(drm_min, "train", train_and_lose)
    report = run(tmp_path / "out", world, descriptions=str(looks))
    assert len(report["about"]["prompts_sha256"]) == 64 and not looks.exists()
