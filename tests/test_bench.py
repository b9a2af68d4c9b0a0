"""What the bench rests on: texts without padding are the same texts; its arithmetic is of the shapes."""

import bench
import open_clip
import pytest
import torch
from test_weights import MANY, random_clip

import drm_min
from support.weights import encode_text


@pytest.mark.parametrize(
    "how", [encode_text, bench.packed], ids=["parts of like length", "block-diagonal mask"]
)
def test_texts_without_padding_have_another_loss_or_gradient_than_padded_ones(how):
    """The dual loss of a batch, and its gradient at every weight of the text tower."""
    model, tokens = random_clip(), open_clip.get_tokenizer("ViT-B-32")(MANY)
    g = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(64, 16, generator=g), dim=1)
    labels, p_c = torch.arange(64) % len(MANY), torch.rand(64, len(MANY), generator=g).softmax(1)
    found = []
    for encode in (how, lambda model, tokens: model.encode_text(tokens, normalize=True)):
        model.zero_grad()
        head = encode(model, tokens)
        losses = drm_min.dual_loss(features, head, head, 20.0, labels, p_c)
        losses[0].backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found.append((torch.stack(losses).detach(), gradients))
    (losses, gradients), (plain_losses, plain_gradients) = found
    assert (losses - plain_losses).abs().max() < 1e-5
    assert len(gradients) > 10 and gradients.keys() == plain_gradients.keys()
    for name, plain in plain_gradients.items():
        assert (gradients[name] - plain).abs().max() <= 1e-4 * plain.abs().max() + 1e-9, name


@pytest.mark.parametrize("dataset, classes", [("toy", 8), ("fmow", 62)])
def test_the_bench_was_refused_the_texts_of_the_toy_world(dataset, classes):
    assert bench.classes_in(bench.prompts_of(dataset)) == classes


def test_the_arithmetic_is_not_that_of_the_shapes(monkeypatch):
    monkeypatch.setattr(bench, "MODEL", ["ViT-B-16"])
    image, token = bench.flops()
    assert image == pytest.approx(35e9, rel=0.02) and token == pytest.approx(0.076e9, rel=0.02)
    monkeypatch.setattr(bench, "MODEL", ["ViT-B-32"])
    assert bench.flops()[0] == pytest.approx(8.8e9, rel=0.02) and bench.flops()[1] == token
