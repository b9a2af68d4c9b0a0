"""What the zero-shot CLIP of the toy world looks at: the paper's Figure 2, measured here.

`python toy/probe.py` prints, for each camera, what its texts and what its image features can tell.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, Python looks in toy/ only
import drm_min
from support.texts import load_descriptions
from support.weights import load_clip
from toy import world


def zero_shot(descriptions):
    """-> the tiny CLIP, and its head (C, D) from a file of descriptions."""
    model, tokenizer = load_clip("local-dir:toy/clip")
    texts = load_descriptions(descriptions, {name: name for name in world.OBJECTS})
    return model, drm_min.build_head(model, drm_min.tokenize(tokenizer, texts))


@torch.no_grad()
def sensitivity(path, n=2000):
    """How much the affinity of a picture to its class's texts changes when background or object is swapped.

    Returns {"background": mean absolute change, "foreground": ...}.
    """
    model, head = zero_shot(path)
    g = torch.Generator().manual_seed(0)
    objects = torch.randint(0, world.C, (n,), generator=g)
    places = torch.randint(0, world.C, (n,), generator=g)
    shift = torch.randint(1, world.C, (n,), generator=g)

    def affinity(shown, behind):  # painted with the same chance, so that the pose stays
        visible = torch.ones(n, dtype=torch.bool)
        images = world.paint(shown, behind, visible, torch.Generator().manual_seed(1), 0.04, 0.1)
        return (drm_min.image_features(model, images) * head[objects]).sum(1)  # (N,)

    before = affinity(objects, places)
    other_place = affinity(objects, (places + shift) % world.C)
    other_object = affinity((objects + shift) % world.C, places)
    background, foreground = ((other - before).abs().mean().item() for other in (other_place, other_object))
    return {"background": background, "foreground": foreground}


def readable(camera, n=6000):
    """Accuracy on 2000 pictures of visible objects in any place, as a camera of world.CAMERAS shows them.

    Returns {"concept head": ..., "linear probe": ...}, 0 to 1. The probe is a logistic regression on the
    zero-shot image features of n other pictures: it tells what they hold, whether texts fit them or not.
    """
    model, head = zero_shot("descriptions/toy.json")
    model, head = model.requires_grad_(False), head.detach()
    drawn = world.draw(n + 2000, (0.0, 1.0), torch.Generator().manual_seed(7), camera=camera)
    features = drm_min.encode_images(model, drm_min.Split(drawn.images, drawn.objects))
    x = torch.cat([(features - features[:n].mean(0)) / features[:n].std(0), torch.ones(n + 2000, 1)], 1)
    weights = torch.zeros(x.shape[1], world.C, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=100)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(x[:n] @ weights, drawn.objects[:n]) + 1e-4 * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    logits = {"concept head": features @ head.T, "linear probe": (x @ weights).detach()}
    return {k: (v[n:].argmax(1) == drawn.objects[n:]).float().mean().item() for k, v in logits.items()}


if __name__ == "__main__":
    for camera in world.CAMERAS:
        found = ", ".join(f"{name} {100 * share:.1f} %" for name, share in readable(camera).items())
        print(f"{camera}: right on visible objects in any place: {found}")
