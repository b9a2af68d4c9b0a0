"""What the zero-shot CLIP of the toy world looks at: the paper's Figure 2, measured here."""

import torch

import drm_min
from support.texts import load_descriptions
from support.weights import load_clip
from toy import world


@torch.no_grad()
def sensitivity(path, n=2000):
    """How much the affinity of a picture to its class's texts changes when background or thing is swapped.

    Returns {"background": mean absolute change, "foreground": ...}.
    """
    model, tokenizer = load_clip("local-dir:toy/clip")
    texts = load_descriptions(path, {name: name for name in world.THINGS})
    head = drm_min.build_head(model, drm_min.tokenize(tokenizer, texts))  # (C, D)
    g = torch.Generator().manual_seed(0)
    things = torch.randint(0, world.C, (n,), generator=g)
    places = torch.randint(0, world.C, (n,), generator=g)
    shift = torch.randint(1, world.C, (n,), generator=g)

    def affinity(shown, behind):  # painted with the same chance, so that the pose stays
        visible = torch.ones(n, dtype=torch.bool)
        images = world.paint(shown, behind, visible, torch.Generator().manual_seed(1), 0.04, 0.1)
        return (drm_min.image_features(model, images) * head[things]).sum(1)  # (N,)

    before = affinity(things, places)
    other_place = affinity(things, (places + shift) % world.C)
    other_thing = affinity((things + shift) % world.C, places)
    background, foreground = ((other - before).abs().mean().item() for other in (other_place, other_thing))
    return {"background": background, "foreground": foreground}
