"""Heads and image features: how texts become rows, and what the zero-shot heads look at."""

import pytest
import torch
import torch.nn.functional as F

from drm_min import Split, build_head, image_features, predict, tokenize
from toy import world as of_toy

pytestmark = pytest.mark.usefixtures("one_thread")


def test_heads_average_unit_embeddings_and_have_unit_rows(clip):
    model, tokenizer = clip
    groups = [
        ["two thin boards", "a pair of planks with bent ends", "long"],
        ["a diamond"],
        ["a sail", "a flat hull"],
    ]
    head = build_head(model, tokenize(tokenizer, groups))
    for row, of_class in zip(head, groups):
        each = model.encode_text(tokenizer(of_class), normalize=True)
        assert torch.allclose(row, F.normalize(each.mean(0), dim=0), atol=1e-5)
    assert head.norm(dim=1).sub(1).abs().max() < 1e-5


def test_rows_of_some_classes_equal_those_of_the_whole_head(clip, prompts):
    model, _ = clip
    some = torch.tensor([1, 4, 6])
    rows = build_head(model, prompts.concept, some)
    assert torch.allclose(rows, build_head(model, prompts.concept)[some], atol=1e-5)


def test_image_features_prepare_pictures_as_the_model_says(clip, toy):
    model, _ = clip
    images = toy.train.images[:4]
    prepared = (images.float() / 255 - 0.5) / 0.25  # toy/clip/open_clip_config.json
    expected = model.encode_image(prepared, normalize=True)
    assert torch.allclose(image_features(model, images), expected, atol=1e-6)
    assert torch.equal(image_features(model, prepared), expected)  # what is prepared is left as it is


def test_zero_shot_default_head_leans_on_the_place_and_the_concept_head_does_not(clip, prompts):
    """The paper's Figure 2 in one number each: hidden objects in nature's own places."""
    hidden = of_toy.draw(2000, (1.0, 0.0), torch.Generator().manual_seed(7), of_toy.NATURE)
    assert torch.equal(hidden.places, hidden.objects)
    both = predict(clip[0], Split(hidden.images, hidden.objects), prompts)
    p_default, p_concept = (p.gather(1, hidden.places[:, None]).mean().item() for p in both)
    assert p_default >= 0.5 and p_concept <= 0.2
