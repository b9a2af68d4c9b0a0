import copy
import math

import open_clip
import pytest
import torch
import torch.nn.functional as F

import describe
import drm_min
from drm_min import (BadInput, Config, Split, build_head, encode_text, evaluate, image_features, interpolate_weights, load_clip,
                     logit_scale, predict, tokenize, train)


@pytest.fixture(scope="module")
def small(toy):
    """The toy data, a few images of each split."""

    def few(split):
        return split.take(torch.arange(96))
    return toy._replace(train=few(toy.train), val=few(toy.val), tests={k: few(v) for k, v in toy.tests.items()})


def state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


# ---------------------------------------------------------------------------------------------------------- text tower

def random_clip(custom_text=False, pool="argmax", **text):
    torch.manual_seed(0)
    vision = dict(layers=1, width=32, head_width=16, patch_size=16, image_size=32)
    text = dict(context_length=77, vocab_size=49408, width=32, heads=2, layers=2, pool_type=pool) | text
    kind = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
    return kind(16, open_clip.CLIPVisionCfg(**vision), open_clip.CLIPTextCfg(**text)).eval()


PROMPTS = ["a cat", "a photo of a very long word salad that goes on and on", "x"]
MANY = [f"{i} " * (1 + 7 * i % 30) for i in range(97)]  # lengths all mixed up: read in parts of like length


@pytest.mark.parametrize("prompts", [PROMPTS, MANY], ids=["few", "many"])
@pytest.mark.parametrize("custom_text", [False, True])
def test_encode_text_equals_open_clip(custom_text, prompts):
    model, tokens = random_clip(custom_text), open_clip.get_tokenizer("ViT-B-32")(prompts)
    assert torch.allclose(encode_text(model, tokens), model.encode_text(tokens, normalize=True), atol=1e-5)
    assert encode_text(model, tokens).norm(dim=1).sub(1).abs().max() < 1e-5


def test_encode_text_reads_no_further_than_the_longest_end_token():
    model, tokens, lengths = random_clip(), open_clip.get_tokenizer("ViT-B-32")(PROMPTS), []
    model.ln_final.register_forward_hook(lambda module, args, out: lengths.append(out.shape[1]))
    encode_text(model, tokens)
    assert lengths == [int((tokens != 0).sum(1).max())] and lengths[0] < 20
    lengths.clear()
    encode_text(model, open_clip.get_tokenizer("ViT-B-32")(MANY))
    assert len(lengths) == 3 and lengths[0] < lengths[1] < lengths[2]  # the short ones are not read as far as the long ones


@pytest.mark.parametrize("text", [dict(no_causal_mask=True), dict(pool="last", no_causal_mask=True),
                                  dict(embed_cls=True, pad_id=0, output_tokens=False)])
def test_text_towers_that_see_the_padding_take_the_ordinary_path(text):
    model, tokens = random_clip(True, **text), open_clip.get_tokenizer("ViT-B-32")(PROMPTS)
    assert torch.allclose(encode_text(model, tokens), model.encode_text(tokens, normalize=True), atol=1e-6)


def test_torch_2_4_is_given_the_arguments_that_it_asks_for(monkeypatch):
    """There, functional_call has no default for the positional ones."""
    call = drm_min.functional_call
    monkeypatch.setattr(drm_min, "functional_call", lambda module, weights, args, kwargs=None: call(module, weights, args, kwargs))
    assert encode_text(random_clip(), open_clip.get_tokenizer("ViT-B-32")(PROMPTS)).shape == (3, 16)


@pytest.mark.parametrize("prompts", [PROMPTS, MANY], ids=["few", "many"])
def test_gradient_of_the_trimmed_text_equals_that_of_the_whole(prompts):
    model, tokens = random_clip(), open_clip.get_tokenizer("ViT-B-32")(prompts)
    target = torch.randn(len(prompts), 16, generator=torch.Generator().manual_seed(1))
    gradients = []
    for features in (encode_text(model, tokens), model.encode_text(tokens, normalize=True)):
        model.zero_grad()
        (features * target).sum().backward()
        gradients.append([p.grad.clone() for p in (model.token_embedding.weight, model.positional_embedding, model.text_projection)])
    for trimmed, whole in zip(*gradients):
        assert 0 < whole.abs().max() and (trimmed - whole).abs().max() <= 1e-5 * whole.abs().max()


def test_over_long_texts_are_counted_and_refused_not_cut(clip):
    """open_clip cuts them without a word, and two different sentences get one embedding."""
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    a, b = "cat " * 90, "dog " * 90
    with pytest.raises(BadInput, match="92 tokens.*cat cat.*77 at most"):
        tokenize(tokenizer, [[a.strip()], [b.strip()]])
    assert tokenize(tokenizer, [["cat " * 75], ["dog"]]).tokens.shape == (2, 77)  # 75 + start + end: just fits


# --------------------------------------------------------------------------------------------------------------- heads

def test_heads_average_unit_embeddings_and_have_unit_rows(clip):
    model, tokenizer = clip
    groups = [["two thin boards", "a pair of planks with bent ends", "long"], ["a diamond"], ["a sail", "a flat hull"]]
    head = build_head(model, tokenize(tokenizer, groups))
    for row, of_class in zip(head, groups):
        each = model.encode_text(tokenizer(of_class), normalize=True)
        assert torch.allclose(row, F.normalize(each.mean(0), dim=0), atol=1e-5)
    assert head.norm(dim=1).sub(1).abs().max() < 1e-5


def test_rows_of_some_classes_equal_those_of_the_whole_head(clip, texts):
    model, _ = clip
    some = torch.tensor([1, 4, 6])
    assert torch.allclose(build_head(model, texts[1], some), build_head(model, texts[1])[some], atol=1e-5)


def test_image_features_prepare_pictures_as_the_model_says(clip, small):
    model, _ = clip
    images = small.train.images[:4]
    prepared = (images.float() / 255 - 0.5) / 0.25  # toy/clip/open_clip_config.json
    assert torch.allclose(image_features(model, images), model.encode_image(prepared, normalize=True), atol=1e-6)


def test_zero_shot_default_head_leans_on_the_place_and_the_concept_head_does_not(clip, texts):
    """The paper's Figure 2 in one number each: hidden things in nature's own places."""
    from toy import world

    model, _ = clip
    hidden = world.draw(2000, (1.0, 0.0), torch.Generator().manual_seed(7), world.NATURE)
    assert torch.equal(hidden.places, hidden.things)
    split = Split(hidden.images, hidden.things)
    p_default, p_concept = (p.gather(1, hidden.places[:, None]).mean().item() for p in predict(model, split, *texts))
    assert p_default >= 0.5 and p_concept <= 0.2


# ------------------------------------------------------------------------------------------------------------ training

def trained(clip, small, texts, lam, form="ce", steps=1, **config):
    model = copy.deepcopy(clip[0])
    losses = train(model, small.train, *texts, lambda batch: torch.full((len(batch), 8), 1 / 8), Config(epochs=steps, batch_size=96, **config), lam, form, seed=0)
    return model, losses


@pytest.mark.parametrize("form", ["ce", "flyp"])
@pytest.mark.parametrize("lam", [0.0, 1.0, math.inf])
def test_one_step_moves_both_towers(clip, small, texts, lam, form):
    model, losses = trained(clip, small, texts, lam, form)
    before, after = clip[0].state_dict(), model.state_dict()
    for part in ("visual.trunk.stem.0.weight", "visual.head.proj.weight", "transformer.resblocks.0.mlp.c_fc.weight",
                 "text_projection", "logit_scale"):
        assert not torch.equal(before[part], after[part]), part
    assert len(losses) == 1 and not model.training


def test_training_lowers_the_loss_on_its_images(clip, small, texts):
    for form in ("ce", "flyp", "flyp-released"):
        losses = trained(clip, small, texts, 0.0, form, steps=20)[1]
        assert sum(losses[-3:]) < sum(losses[:3])


def test_released_flyp_is_flyp_loss_on_one_text_an_image(clip, small, texts):
    model, _ = clip
    _, [loss] = trained(clip, small, texts, 0.0, "flyp-released")
    text_features = build_head(model, texts[0])[small.train.labels]
    expected = drm_min.flyp_loss(image_features(model, small.train.images), text_features, logit_scale(model))
    assert loss == pytest.approx(expected.item(), abs=1e-5)


def test_drawn_texts_are_one_of_each_class_and_each_as_often():
    texts, n = drm_min.Texts(torch.arange(14).view(7, 2), torch.tensor([0, 0, 0, 1, 2, 2, 2])), torch.zeros(7)
    torch.manual_seed(0)
    for _ in range(900):
        tokens, owner = drm_min.draw_texts(texts)
        assert owner.tolist() == [0, 1, 2] and (texts.owner[tokens[:, 0] // 2] == owner).all()
        n[tokens[:, 0] // 2] += 1
    assert n[3] == 900 and (n[texts.owner != 1] - 300).abs().max() < 60  # four standard deviations


def test_drawing_texts_changes_nothing_where_a_class_has_one_and_is_alike_from_run_to_run(clip, small, texts):
    first = tuple(drm_min.Texts(of_head.tokens[::len(of_head.tokens) // 8], torch.arange(8)) for of_head in texts)
    one, drawn = (trained(clip, small, first, 1.0, steps=2, draw_texts=draw)[1] for draw in (False, True))
    assert one == drawn
    mean, drawn, again = (trained(clip, small, texts, 1.0, steps=2, draw_texts=draw)[1] for draw in (False, True, True))
    assert drawn == again and drawn != mean


@pytest.mark.parametrize("start, kept", [(math.log(100), math.log(100)), (6.0, 6.0)])  # SigLIP's starts above 100 and stays
def test_logit_scale_does_not_rise_above_100_or_its_start(clip, small, texts, monkeypatch, start, kept):
    monkeypatch.setattr(drm_min, "dual_loss", lambda features, head, _, scale, *rest: 0 * (features.sum() + head.sum()) - scale)
    model = copy.deepcopy(clip[0])
    model.logit_scale.data.fill_(start)
    train(model, small.train, *texts, None, Config(epochs=3, batch_size=96), 0.0, "ce", seed=0)
    assert model.logit_scale.item() == pytest.approx(kept)


def test_logit_scale_does_not_fall_below_1(clip, small, texts):
    model = copy.deepcopy(clip[0])
    model.logit_scale.data.fill_(-1.0)
    train(model, small.train, *texts, None, Config(epochs=1, batch_size=96), 0.0, "ce", seed=0)
    assert model.logit_scale.item() == 0


def test_weight_decay_shrinks_matrices_and_spares_vectors_and_the_logit_scale(clip, small, texts, monkeypatch):
    """A loss without gradient leaves decay alone to act."""
    monkeypatch.setattr(drm_min, "dual_loss", lambda features, head, _, scale, *rest: 0 * (features.sum() + head.sum() + scale))
    model = copy.deepcopy(clip[0])
    train(model, small.train, *texts, None, Config(epochs=1, batch_size=96, lr=0.1, weight_decay=0.5), 0.0, "ce", seed=0)
    before, after = clip[0].state_dict(), model.state_dict()
    assert torch.allclose(after["text_projection"], 0.95 * before["text_projection"])  # 1 - lr * weight decay
    for name in ("logit_scale", "ln_final.weight", "visual.trunk.stem.0.bias"):
        assert torch.equal(after[name], before[name]), name


def test_learning_rate_warms_up_and_falls_along_a_cosine(clip, small, texts, monkeypatch):
    rates, step = [], torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *a, **k: (rates.append(self.param_groups[0]["lr"]), step(self, *a, **k))[1])
    trained(clip, small, texts, 0.0, steps=40, lr=1e-3)
    assert rates[:4] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3])  # a tenth of 40 steps
    falling = [(1 + math.cos(math.pi * i / 37)) / 2 * 1e-3 for i in range(36)]  # 0 would be the step after the last
    assert rates[4:] == pytest.approx(falling)


def test_a_loss_that_is_not_finite_stops_and_names_the_step(clip, small, texts):
    with pytest.raises(BadInput, match=r"--lr 1000000000.0: the loss of step \d+ is (nan|inf)"):
        trained(clip, small, texts, 0.0, steps=5, lr=1e9)


def test_interpolation_gives_the_ends_and_touches_neither_source(clip, small, texts):
    zero_shot = copy.deepcopy(clip[0])
    fine_tuned, _ = trained(clip, small, texts, 1.0, steps=3)
    start, end = state(zero_shot), state(fine_tuned)
    for alpha, expected in ((0.0, start), (1.0, end)):
        got = interpolate_weights(zero_shot, fine_tuned, alpha).state_dict()
        assert all(torch.equal(got[k], expected[k]) for k in expected)
    half = interpolate_weights(zero_shot, fine_tuned, 0.5)
    assert torch.allclose(half.text_projection, (start["text_projection"] + end["text_projection"]) / 2)
    half.text_projection.data.zero_()
    for model, kept in ((zero_shot, start), (fine_tuned, end)):
        assert all(torch.equal(model.state_dict()[k], kept[k]) for k in kept)


# ---------------------------------------------------------------------------------------------------------- evaluation

@pytest.mark.parametrize("training", [False, True])
def test_evaluating_twice_gives_one_answer_and_leaves_the_mode(clip, small, texts, training):
    model = copy.deepcopy(clip[0]).train(training)
    weights = state(model)
    first, second = (evaluate(model, small, *texts, (1.0, 0.5)) for _ in range(2))
    assert first == second and model.training is training
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())


def test_one_pass_of_the_image_encoder_serves_both_heads(clip, small, texts):
    model, passes = copy.deepcopy(clip[0]), []
    model.visual.register_forward_hook(lambda module, args, out: passes.append(len(out)))
    evaluate(model, small, *texts, (1.0, 0.0, 0.3, 0.5))
    assert passes == [96] * 5  # validation and four domains, each once


def test_metrics_by_hand():
    p = torch.tensor([[0.7, 0.3], [0.4, 0.6], [0.9, 0.1], [0.2, 0.8]], dtype=torch.double)
    split = Split(torch.zeros(4), torch.tensor([0, 1, 1, 1]), groups={
        "seen": torch.tensor([True, True, True, False]), "empty": torch.zeros(4, dtype=torch.bool)})
    got = drm_min.metrics(p, split)
    assert got["accuracy"] == 0.75 and got["n"] == 4
    assert got["log_loss"] == pytest.approx(-(math.log(0.7) + math.log(0.6) + math.log(0.1) + math.log(0.8)) / 4)
    assert got["accuracy_seen"] == pytest.approx(2 / 3) and got["n_seen"] == 3
    assert "accuracy_empty" not in got  # no images, no accuracy: neither 0 nor NaN


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
    p, _ = drm_min.predict(Model(), split, None, None)
    assert drm_min.metrics(p, split)["log_loss"] == pytest.approx(200, abs=0.01)


def test_probabilities_that_are_not_finite_stop_the_run(clip, small, texts):
    model = copy.deepcopy(clip[0])
    model.text_projection.data.fill_(math.nan)
    with pytest.raises(BadInput, match="not finite"):
        evaluate(model, small, *texts, (0.5,))


def test_pictures_are_brought_to_the_size_that_the_model_sees():
    model = random_clip()  # 32 pixels
    open_clip.model.set_model_preprocess_cfg(model, dict(mean=(0.5,) * 3, std=(0.5,) * 3))
    assert drm_min.encode_images(model, Split(torch.zeros(2, 3, 48, 48, dtype=torch.uint8), torch.zeros(2))).shape == (2, 16)


# -------------------------------------------------------------------------------------------------------- model folders

def test_the_tiny_clip_is_an_ordinary_open_clip_folder():
    folder = describe.ROOT / "toy" / "clip"
    model = open_clip.create_model(f"local-dir:{folder}", require_pretrained=True)
    assert sum(f.stat().st_size for f in folder.iterdir()) < 8e6
    assert sum(p.numel() for p in model.visual.parameters()) < 1e6
    assert not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in model.modules())


def test_weights_arrive_in_float32_and_eval_mode(clip):
    model, _ = load_clip("local-dir:toy/clip")
    assert not model.training and {p.dtype for p in model.parameters()} == {torch.float32}


def test_pretraining_starts_from_nothing_and_saves_a_folder_that_loads(tmp_path):
    import subprocess
    import sys

    done = subprocess.run([sys.executable, describe.ROOT / "toy/pretrain.py", "--out", tmp_path / "clip", "--steps", "2", "--batch-size", "20"],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    new, old = load_clip(f"local-dir:{tmp_path / 'clip'}")[0], load_clip("local-dir:toy/clip")[0]
    assert {k: v.shape for k, v in new.state_dict().items()} == {k: v.shape for k, v in old.state_dict().items()}
