"""A world whose truth is known (world.py), a tiny CLIP (clip/, pretrain.py), what it looks at (probe.py)."""

# The default job, in the form of the recipes in support/readers/; measured on this world.
RECIPE = {
    "method": ("zero-shot", "erm", "wrm", "drm"),
    "model": "local-dir:toy/clip",
    "descriptions": "descriptions/toy.json",
    "template": ("a photo of a {}.",),
    "core_targets": "softmax",
    "epochs": 6,
    "batch_size": 256,
    "lr": 7e-4,
    "warmup": 500,
    "weight_decay": 0.1,
    "select": "last",
    "save_every": 0,
}
