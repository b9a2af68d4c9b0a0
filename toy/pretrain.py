#!/usr/bin/env python3
"""Pre-train the tiny CLIP of the toy world: python toy/pretrain.py [--out FOLDER] [--seed N] [--steps N].

What makes it behave like a CLIP of the web is only its data, image-caption pairs of three kinds:
- names ("a photo of a ski."): the object stands in nature's own place 80 % of the time and is often hard to
  see, so the name comes to mean the snow as well: the shortcut;
- descriptions ("two long thin boards with ..."): the object is visible in 80 % and stands in any place, so a
  description means the shape, and an image without a shape fits all descriptions alike;
- places ("a photo of a snowy slope.").
Equal captions in a batch are all positives. The result is an ordinary open_clip folder.
"""

import argparse
import json
import logging
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, Python looks in toy/ only
import open_clip
from safetensors.torch import save_file
from tqdm import tqdm

from drm_min import build_head, contrastive_loss, image_features, logit_scale, tokenize
from support.errors import ROOT, write
from support.texts import load_descriptions
from support.weights import encode_text
from toy import world

CONFIG = {
    "model_cfg": {
        "embed_dim": 64,
        "vision_cfg": {
            "image_size": world.SIZE,
            "timm_model_name": "test_convnext3",
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
        },
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
    },
    "preprocess_cfg": {
        "size": world.SIZE,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "interpolation": "bilinear",
        "resize_mode": "squash",
    },
}

NAME_CAPTIONS = ("a photo of a {}.", "a {}.", "a picture of a {}.", "my {}.")
PLACE_CAPTIONS = ("a photo of {}.", "{}.", "a view of {}.")
PLACE_NAMES = (
    ("a snowy slope", "snow"),
    ("the blue sky", "a clear sky"),
    ("the sea", "waves at sea"),
    ("a dark forest", "the woods"),
    ("a paved street", "paving slabs"),
    ("a green meadow", "grass"),
    ("a coral reef", "turquoise water"),
    ("a sandy desert", "dunes"),
)
# For each object, ways to write its two most telling parts; a caption joins one of each.
DESCRIPTION_CAPTIONS = ("{} with {}", "it has {} and {}", "{}, {}", "{} next to {}")
PARTS = (
    (
        ("two long thin boards", "a pair of narrow parallel boards", "two slim parallel planks"),
        ("curved tips", "bent front ends", "tips that curve upward"),
    ),
    (
        ("a diamond", "a flat diamond shape", "a four-cornered diamond"),
        ("a wavy trailing tail", "a thin winding tail", "a long tail hanging below"),
    ),
    (
        ("a triangular sail", "a tall pointed sail", "one upright triangular sheet"),
        ("a flat hull", "a wide hull with slanted ends", "a low hull beneath"),
    ),
    (
        ("a wide triangle", "a broad triangular front", "a large triangle of cloth"),
        ("a dark doorway in the middle", "an open entrance at the bottom", "a triangular opening"),
    ),
    (
        ("a half dome", "a broad half-round canopy", "a curved dome on top"),
        ("a hooked stick", "a thin stick ending in a hook", "a curved handle below"),
    ),
    (
        ("a round cap", "a rounded half-ball cap", "a wide cap on top"),
        ("a thick stem", "a short thick stalk", "a stout pale stem"),
    ),
    (
        ("an oval body", "a smooth oval body", "a rounded long body"),
        ("a forked tail", "a tail split in two", "a notched tail fin"),
    ),
    (
        ("a thick upright column", "a tall column", "a straight vertical trunk"),
        ("two bent arms", "arms that turn upward", "two side branches pointing up"),
    ),
)


def captioned(n, g):
    """n image-caption pairs -> images (n, 3, 32, 32) uint8, list of n captions."""
    images, captions = [], []

    def pick(options):
        return options[int(torch.randint(len(options), (), generator=g))]

    for kind, share, rho, visible in (
        ("name", 0.45, 0.8, 0.6),
        ("description", 0.35, 0.0, 0.8),
        ("place", 0.2, 0.8, 0.5),
    ):
        p = world.draw(round(share * n), (rho, visible), g, regular=world.NATURE, noise=0.04, light=0.1)
        images.append(p.images)
        for c, place in zip(p.objects.tolist(), p.places.tolist()):
            if kind == "name":
                captions.append(pick(NAME_CAPTIONS).format(world.OBJECTS[c]))
            elif kind == "description":
                captions.append(pick(DESCRIPTION_CAPTIONS).format(*map(pick, PARTS[c])))
            else:
                captions.append(pick(PLACE_CAPTIONS).format(pick(PLACE_NAMES[place])))
    return torch.cat(images), captions


@torch.no_grad()
def report(model, tokenizer):
    """Zero-shot accuracy of each head on clean visible objects, and what it makes of hidden ones."""
    model.eval()
    g = torch.Generator().manual_seed(12345)
    heads = {
        "default head": [[f"a photo of a {name}."] for name in world.OBJECTS],
        "concept head": load_descriptions("descriptions/toy.json", {name: name for name in world.OBJECTS}),
    }
    clean = world.draw(2000, (0.0, 1.0), g, world.NATURE, 0.04, 0.1)
    hidden = world.draw(2000, (1.0, 0.0), g, world.NATURE, 0.04, 0.1)
    for name, texts in heads.items():
        head, s = build_head(model, tokenize(tokenizer, texts)), logit_scale(model)
        right = (image_features(model, clean.images) @ head.T).argmax(1) == clean.objects
        p = (s * image_features(model, hidden.images) @ head.T).softmax(1).gather(1, hidden.places[:, None])
        print(
            f"{name}: {100 * right.float().mean():.1f} % right on visible objects in any place; "
            f"a hidden object's own place gets {p.mean():.2f} of the probability"
        )
    model.train()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=ROOT / "toy" / "clip", help="folder to write (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "open_clip_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")

    logging.disable(logging.WARNING)  # open_clip warns that the weights are random, which is the point here
    torch.manual_seed(args.seed)
    model = open_clip.create_model(f"local-dir:{args.out}", load_weights=False)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{args.out}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.02, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, args.steps, pct_start=0.1)
    g = torch.Generator().manual_seed(args.seed)
    start, model = time.time(), model.train()
    bar = tqdm(range(args.steps), desc="pre-training", mininterval=1)
    for step in bar:
        images, captions = captioned(args.batch_size, g)
        texts = sorted(set(captions))
        column = {text: k for k, text in enumerate(texts)}
        targets = torch.zeros(len(captions), len(texts))  # (B, T): equal captions share their column
        targets[torch.arange(len(captions)), torch.tensor([column[c] for c in captions])] = 1
        logits = (
            logit_scale(model) * image_features(model, images) @ encode_text(model, tokenizer(texts)).T
        )  # (B, T)
        loss = contrastive_loss(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)
        if step % 100 == 99:
            bar.write(f"step {step + 1}: loss {loss.item():.3f}, scale {logit_scale(model).item():.1f}")
            report(model, tokenizer)
    weights = {
        k: v.half().contiguous() if v.is_floating_point() else v for k, v in model.state_dict().items()
    }
    file = args.out / "open_clip_model.safetensors"
    write(file, lambda temporary: save_file(weights, temporary, metadata={"format": "pt"}))
    size = sum(f.stat().st_size for f in args.out.iterdir()) / 1e6
    print(f"{args.out}: {size:.1f} MB after {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
