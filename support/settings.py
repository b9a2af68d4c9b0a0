"""What may be asked for: every option of drm_min.py, with its default, its limits and its help."""

from dataclasses import dataclass

import toy
from support.checkpoints import READ_OF_ERM
from support.errors import BadInput
from support.options import complete, option
from support.readers import READERS
from support.report import METHODS as NAMES
from support.targets import REFINED
from toy import world

METHODS = tuple(NAMES)
WHAT_THEY_ARE = "erm: (2); wrm: (3); drm, dual: both; erm-mixed, ensemble, flyp: rivals; or zero-shot"
OF_ERM = ("erm", *READ_OF_ERM)  # one training, read in three ways
OF_FEATURES = ("softmax", "label", *REFINED)  # estimators that look at the zero-shot model
ESTIMATORS = (*OF_FEATURES, "onehot", "oracle")
RECIPES = dict.fromkeys(world.CAMERAS, toy.RECIPE) | {name: READERS[name].RECIPE for name in READERS}


@dataclass(frozen=True)
class Config:
    """Everything that decides a run. What is None comes from the recipe of the data set. Raises BadInput."""

    dataset: str = option("toy", "the data", choices=tuple(RECIPES), group="data")
    data_root: str = option(None, "folder of the data set as published (csv: the file)")
    skip_bad_images: bool = option(False, "leave out, and count, training images that cannot be read")
    workers: int = option(None, "processes that read images; if left out, the cores, 16 at most", 0, 1024)
    method: tuple[str, ...] = option(None, WHAT_THEY_ARE, choices=METHODS, group="method")
    lam: float = option(1.0, "lambda, the weight of (3) in drm and dual", 0, 1e6)
    sweep: tuple[float, ...] = option((), "further lambdas for drm: the trade-off curve", 0, 1e6)
    beta: float = option(None, "of (4); if left out, 1 / (1 + lambda); erm and flyp have 1, wrm 0", 0, 1)
    alpha: tuple[float, ...] = option((1.0,), "WiSE-FT: the shares of fine-tuned weights", 0, 1)
    core_targets: tuple[str, ...] = option(None, "estimators of p_c (5)", choices=ESTIMATORS)
    loss: str = option("ce", "ce: over all classes; flyp: contrastive, in the batch", choices=("ce", "flyp"))
    seed: int = option(0, "of the images (toy), their order, and all chance", 0, 2**31, group="training")
    seeds: int = option(1, "how many, from --seed on; the table has mean and deviation", 1, 1000)
    epochs: int = option(None, "passes over the training images", 1, 10**4)
    batch_size: int = option(None, "images a step", 1, 10**6)
    accumulate: int = option(1, "parts of a batch, one after the other: less memory", 1, 10**6)
    lr: float = option(None, "peak learning rate of AdamW", 0, 1e9)
    warmup: int = option(None, "steps of it, at most a tenth of the run", 0, 10**9)
    weight_decay: float = option(None, "of AdamW, on matrices only", 0, 1e6)
    select: str = option(None, "epoch whose weights are kept, by validation", choices=("last", "best"))
    grad_checkpointing: bool = option(False, "compute activations twice: less memory, more time")
    model: str = option(None, "open_clip's name, local-dir:FOLDER or hf-hub:NAME", group="model and texts")
    pretrained: str = option(None, "tag of the weights, such as openai, or a file")
    descriptions: str = option(None, "JSON file of concept descriptions")
    template: tuple[str, ...] = option(None, "default prompts, with {} for the class")
    concept_template: str = option(None, "concept prompts: {text}, or {name} too")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps", group="machine and files")
    precision: str = option("auto", "of the towers in training", choices=("auto", "fp32", "bf16", "fp16"))
    out: str = option(None, "folder of results and models; if left out, runs/DATASET")
    save_every: int = option(None, "steps between checkpoints; 0: one at the end, -1: no model", -1, 10**9)
    resume: bool = option(False, "go on from the checkpoints in --out")
    overwrite: bool = option(False, "replace what an earlier run left in --out")
    predict: tuple[str, ...] = option((), "pictures or folders: what --model, which a run left, sees")
    eval_only: bool = option(False, "evaluate --model, which a run left, as it is")

    def __post_init__(self):
        if self.data_root is not None and self.dataset in world.CAMERAS:
            what = f"{self.dataset} draws its images; allowed: another --dataset ({', '.join(READERS)})"
            raise BadInput(f"--data-root {self.data_root}: {what}")
        complete(self, RECIPES)
