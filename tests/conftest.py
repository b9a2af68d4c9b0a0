import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import describe  # noqa: E402
import drm_min


@pytest.fixture(scope="session")
def clip():
    """The tiny CLIP and its tokenizer; tests that change it work on a copy."""
    return drm_min.load_clip("local-dir:toy/clip")


@pytest.fixture(scope="session")
def toy():
    return drm_min.load_data(drm_min.Config(), seed=0)


@pytest.fixture(scope="session")
def texts(clip, toy):
    """(default, concept) prompts of the toy world."""
    _, tokenizer = clip
    names = [[f"a photo of a {name}."] for name in toy.classes.values()]
    return (drm_min.tokenize(tokenizer, names),
            drm_min.tokenize(tokenizer, describe.load_descriptions("descriptions/toy.json", toy.classes)))


@pytest.fixture
def g():
    return torch.Generator().manual_seed(0)
