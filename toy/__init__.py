"""A world whose truth is known (world.py), a tiny CLIP (clip/, pretrain.py), what it looks at (probe.py)."""

# The default job, in the form of the recipes in support/readers/; measured on this world.
RECIPE = {"model": "local-dir:toy/clip", "descriptions": "descriptions/toy.json"}
RECIPE |= {"method": ("zero-shot", "erm", "ensemble", "wrm", "drm"), "template": ("a photo of a {}.",)}
RECIPE |= {"concept_template": "{text}", "domain": "drawings of simple objects before plain places"}
RECIPE |= {"core_targets": ("posterior",), "select": "last", "save_every": 0}
RECIPE |= {"epochs": 6, "batch_size": 256, "lr": 7e-4, "warmup": 500, "weight_decay": 0.1}
