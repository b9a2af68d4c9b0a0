"""The baseline FLYP as it was released, where its training loop differs from ours (--method flyp).

Its loss is drm_min.contrastive_loss with identity targets: each image against the texts of its batch. Its
text is one of the class's templates, drawn anew for each image; the last, smaller batch of an epoch counts;
everything is decayed, the logit scale too; the scale is not clamped; and the rate falls as below.
"""

import math

import torch

from support.settings import RECIPES


def lr_factor(step, steps, warmup):
    """Linear warm-up, then a cosine that would be 0 one step after the last."""
    warmup = max(1, min(warmup, steps // 10))  # the release has no such limit, nor any run as short
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def templates(config):
    """Those of the release where they are others than ours and --template says nothing, else ()."""
    recipe = RECIPES[config.dataset]
    return recipe.get("flyp_template", ()) if config.template == recipe["template"] else ()


def draw_texts(texts, labels):
    """Default prompts and labels (B,) -> (each prompt a class of its own, that of each image (B,)).

    The prompts of a class stand in a row, as many for each class; chance is torch's.
    """
    tokens, owner = texts
    of_a_class = len(owner) // (int(owner.max()) + 1)
    drawn = torch.randint(of_a_class, labels.shape).to(labels.device)
    return texts._replace(owner=torch.arange(len(tokens), device=owner.device)), labels * of_a_class + drawn
