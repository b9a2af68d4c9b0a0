"""Everything that lies on disk: data sets as they were published, pictures, weights, checkpoints. The method is in drm_min.py.

Recipes, splits, metrics and traps of the data sets are those of WILDS (iWildCam, FMoW, Waterbirds), of WiSE-FT and FLYP (the
ImageNet family), and of the data sets' own authors.
"""
import contextlib
import csv
import difflib
import importlib.resources
import json
import logging
import os
import shutil
import signal
import tempfile
import threading
import warnings
from pathlib import Path
from typing import NamedTuple

import open_clip
import torch
import torchvision
from open_clip.transform import AugmentationCfg, PreprocessCfg, image_transform_v2
from PIL import Image, ImageCms, ImageOps
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from describe import BadInput, find, log, twice, write

# ---------------------------------------------------------------------------------------------- data sets as published

# Data set -> its recipe (defaults for the options that are not given) and what is known of its data: `metrics`, in and out of
# distribution; `group`, what its groups are; `layout`, where it comes from. Its reader, read_<data set>, yields its rows. The
# recipes are those that FLYP released; toy's was measured here.
REAL = dict(method=("zero-shot", "drm"), model="ViT-B-16", pretrained="openai", core_targets="softmax", epochs=20, batch_size=256,
            lr=1e-5, weight_decay=0.2, warmup=500, select="best", save_every=1000, template=("a photo of a {}.",),
            metrics=("accuracy", "accuracy"))
DATASETS = {
    "toy": dict(method=("zero-shot", "erm", "wrm", "drm"), model="local-dir:toy/clip", descriptions="descriptions/toy.json",
                core_targets="softmax", epochs=6, batch_size=256, lr=7e-4, weight_decay=0.1, warmup=500, select="last", save_every=0,
                template=("a photo of a {}.",)),
    "cifar10": REAL | dict(epochs=10, data_root="data", descriptions="descriptions/cifar10.json",
                           layout="CIFAR-10 and STL-10 are downloaded to it by torchvision"),
    "waterbirds": REAL | dict(descriptions="descriptions/waterbirds.json", group="group", metrics=("accuracy", "worst_group_accuracy"),
                              group_weights=dict(  # of WILDS
                                  landbird_land=3498, landbird_water=184, waterbird_land=56, waterbird_water=1057),
                              layout="allowed: a folder with waterbirds_v1.0/metadata.csv and its images, from https://wilds.stanford.edu"),
    "iwildcam": REAL | dict(descriptions="descriptions/iwildcam.json", template=("a photo of {}.",), core_targets="label",
                            metrics=("macro_f1", "macro_f1"),
                            layout="allowed: a folder with iwildcam_v2.0/{metadata.csv,categories.csv,train/}, from https://wilds.stanford.edu"),
    "fmow": REAL | dict(descriptions="descriptions/fmow.json", template=("satellite photo of a {}.",), group="region",
                        metrics=("accuracy", "worst_region_accuracy"),
                        layout="allowed: a folder with fmow_v1.1/{rgb_metadata.csv,country_code_mapping.csv,images/}, from https://wilds.stanford.edu"),
    "imagenet": REAL | dict(descriptions="descriptions/imagenet.json", template=("a good photo of the {}.",), epochs=10, batch_size=512,
                            weight_decay=0.1, layout="allowed: a folder with imagenet/{train,val}/<wnid>/ from https://image-net.org and, as far as "
                            "you have them, imagenetv2-matched-frequency-format-val, imagenet-r, imagenet-a, sketch, objectnet-1.0"),
    "folder": REAL | dict(layout="allowed: a folder with train/<class>/, val/<class>/ and, for each further domain, <domain>/<class>/"),
    "csv": REAL | dict(layout="allowed: a CSV file with columns path,label,split and optionally domain; splits train, val, test; paths "
                       "relative to the file"),
}


class Row(NamedTuple):
    split: str        # train, val, or the name of a test domain
    image: object     # a path, or (3, H, W) uint8
    label: str        # key of a class, or of a group of classes
    group: str = ""


class Rows(NamedTuple):
    classes: dict     # key -> name
    rows: list
    id_test: str      # the domain that is in-distribution; "val" where validation has to stand in for it
    merged: dict = {}  # domain -> {label: keys of the classes whose best score it gets}, where labels are not classes
    border: dict = {}  # domain -> pixels on each side that are no part of the picture


def csv_rows(path, columns):
    """The rows of a CSV file as dicts that hold at least these columns. Raises BadInput, and OSError if it cannot be opened."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [c for c in columns.split() if c not in (reader.fieldnames or ())]
            if missing:
                raise BadInput(f"{path}: no column {', '.join(missing)}; it has {', '.join(reader.fieldnames or ['none'])}")
            repeated = [c for c in columns.split() if reader.fieldnames.count(c) > 1]
            if repeated:
                raise BadInput(f"{path}: column {', '.join(repeated)} comes twice; allowed: once")
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as e:
        raise BadInput(f"{path}: no CSV in UTF-8 ({e})") from None
    for i, row in enumerate(rows):
        if None in row or any(row[c] is None for c in columns.split()):  # DictReader's key of what is over, and value of what is not there
            raise BadInput(f"{path}: row {i + 1} has {'more' if None in row else 'fewer'} fields than the header")
    return rows


def below(folder, name, table):
    """folder / name, an image that a table names. Raises BadInput where it is not below the folder: a table from somewhere else must not
    reach what is none of its data."""
    if os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == ".." or "\0" in name:
        raise BadInput(f"{table}: the image {name} is not below {folder}; allowed: paths that are")
    return folder / name


def class_folders(path):
    """A folder of class folders -> [(name of the class folder, path of an image)], sorted. Hidden and other files are named and ignored."""
    found, ignored = [], []
    for folder in sorted(path.iterdir()):
        if folder.name.startswith(".") or not folder.is_dir():
            ignored.append(folder)
            continue
        for file in sorted(folder.iterdir()):
            is_image = not file.name.startswith(".") and file.suffix.lower() in Image.registered_extensions() and file.is_file()
            (found if is_image else ignored).append((folder.name, file) if is_image else file)
    empty = [p.name for p in sorted(path.iterdir()) if p.is_dir() and p not in ignored and p.name not in {name for name, _ in found}]
    if empty:
        log(f"{path}: no images in {', '.join(empty[:5])}" + f" and {len(empty) - 5} more" * (len(empty) > 5))
    if ignored:
        log(f"ignored, as no images: {', '.join(str(p) for p in ignored[:5])}" + f" and {len(ignored) - 5} more" * (len(ignored) > 5))
    return found


def read_cifar10(root):
    """CIFAR-10, every tenth training image for validation; STL-10 as the shifted domain, without its monkeys."""
    try:
        train, test = (torchvision.datasets.CIFAR10(root, train=part, download=True) for part in (True, False))
        stl = torchvision.datasets.STL10(root, "test", download=True)
    except (RuntimeError, OSError) as e:  # no network, a damaged archive
        raise BadInput(f"--data-root {root}: CIFAR-10 or STL-10 is not there and cannot be downloaded ({str(e)[:200]})") from None

    def cifar(part, split):
        pictures = torch.from_numpy(part.data).permute(0, 3, 1, 2)  # (N, 3, 32, 32)
        return [Row(split(i), picture, part.classes[y]) for i, (picture, y) in enumerate(zip(pictures, part.targets))]

    names = [{"car": "automobile"}.get(name, name) for name in stl.classes]
    shifted = [Row("stl10", torch.from_numpy(picture), names[y]) for picture, y in zip(stl.data, stl.labels) if names[y] != "monkey"]
    return Rows({name: name for name in train.classes}, cifar(train, lambda i: "train" if i % 10 else "val")
                + cifar(test, lambda i: "cifar10") + shifted, "cifar10")


def read_waterbirds(root):
    """A bird on its own ground is in-distribution, in validation too; on the other ground it is not."""
    base, birds, places, rows = root / "waterbirds_v1.0", ("landbird", "waterbird"), ("land", "water"), []
    for row in csv_rows(base / "metadata.csv", "img_filename y split place"):
        if row["y"] not in ("0", "1") or row["place"] not in ("0", "1"):
            raise BadInput(f"{base / 'metadata.csv'}: {row['img_filename']} has y {row['y']}, place {row['place']}; allowed: 0 or 1")
        at_home = row["y"] == row["place"]
        split = {"0": "train", "1": "val" if at_home else None, "2": "id" if at_home else "ood"}.get(row["split"])
        bird, place = birds[int(row["y"])], places[int(row["place"])]
        if split:
            rows.append(Row(split, below(base, row["img_filename"], base / "metadata.csv"), bird, f"{bird}_{place}"))
    return Rows({bird: bird for bird in birds}, rows, "id")


def read_iwildcam(root):
    """WILDS iWildCam: all images are in train/; its out-of-distribution validation is not used. y 99999: categories without images."""
    base, split_of = root / "iwildcam_v2.0", {"train": "train", "id_val": "val", "id_test": "id_test", "test": "test"}
    named = [(row["y"], row["name"]) for row in csv_rows(base / "categories.csv", "y name") if row["y"] != "99999"]
    if not all(y.isdecimal() and len(y) < 10 for y, _ in named) or twice(named):
        raise BadInput(f"{base / 'categories.csv'}: a y is no whole number, or comes twice: {', '.join(y[:20] for y in twice(named))}")
    classes = dict(named)
    rows = [Row(split_of[row["split"]], below(base / "train", row["filename"], base / "metadata.csv"), row["y"]) for row in
            csv_rows(base / "metadata.csv", "split filename y") if row["split"] in split_of and row["y"] != "99999"]
    return Rows({y: classes[y] for y in sorted(classes, key=int)}, rows, "id_test")


def read_fmow(root):
    """WILDS FMoW: an image is named after its row in the whole table; its out-of-distribution validation is not used."""
    base, rows = root / "fmow_v1.1", []
    region_of = {row["alpha-3"]: row["region"] for row in csv_rows(base / "country_code_mapping.csv", "alpha-3 region")}
    table = csv_rows(base / "rgb_metadata.csv", "split category country_code timestamp")
    for i, row in enumerate(table):
        year = row["timestamp"][:4]  # in UTC, so that the year decides both cut-offs
        if not (year.isdecimal() and len(year) == 4):
            raise BadInput(f"{base / 'rgb_metadata.csv'}: row {i + 1} has the timestamp {row['timestamp']!r}; allowed: such as 2015-04-12T08:02:17Z")
        split = {"train": "train", "val": "val", "test": "id_test"}.get(row["split"]) if year < "2013" else (
            "test" if row["split"] == "test" and year >= "2016" else None)
        if split:
            region = region_of.get(row["country_code"], "Other")
            region = region if region in ("Asia", "Europe", "Africa", "Americas", "Oceania") else "Other"
            rows.append(Row(split, base / "images" / f"rgb_img_{i}.png", row["category"], region))
    return Rows({name: name for name in sorted({row["category"] for row in table})}, rows, "id_test")


def read_imagenet(root):
    """ImageNet and those of its shifted test sets that are there. Validation stands in for an in-distribution test."""
    info = importlib.resources.files("timm") / "data" / "_info"  # wnids, in the order of the indices
    wnids, only_r, only_a = ((info / f"{name}_synsets.txt").read_text().split() for name in ("imagenet", "imagenet_r", "imagenet_a"))
    validation = next((n for n in ("val", "val_class", "val_dirs", "val_in_folder") if (root / "imagenet" / n).is_dir()), "val")
    merged = {"r": {w: [w] for w in only_r}, "a": {w: [w] for w in only_a}}  # scores of the other 800 are left out
    folders = {"train": "imagenet/train", "val": f"imagenet/{validation}", "v2": "imagenetv2-matched-frequency-format-val",
               "r": "imagenet-r", "a": "imagenet-a", "sketch": "sketch", "objectnet": "objectnet-1.0/images"}
    rows = []
    for split, folder in folders.items():
        if not (root / folder).is_dir() and split != "val":
            log(f"skipped: {split}, as {root / folder} is not there")
            continue
        images = class_folders(root / folder)
        if split == "v2":  # the folder's name is the index
            images = [(wnids[int(name)] if name.isdecimal() and int(name) < 1000 else name, path) for name, path in images]
        if split == "objectnet":
            merged[split] = objectnet_classes(root / "objectnet-1.0/mappings", wnids)
            images = [(name, path) for name, path in images if name in merged[split]]
        rows += [Row(split, path, name) for name, path in images]
    return Rows(dict(zip(wnids, open_clip.IMAGENET_CLASSNAMES)), rows, "val", merged, {"objectnet": 2})


def objectnet_classes(mappings, wnids):
    """ObjectNet's own mapping files -> {folder: wnids of the ImageNet classes that it covers}, 113 of its 313 folders."""
    try:
        folder_of, names_of, number_of = (json.loads((mappings / f"{name}.json").read_text(encoding="utf-8")) for name in (
            "folder_to_objectnet_label", "objectnet_to_imagenet_1k", "pytorch_to_imagenet_2012_id"))
        lines = (mappings / "imagenet_to_label_2012_v2").read_text(encoding="utf-8").splitlines()
        index_of = {lines[number].strip(): int(index) for index, number in number_of.items()}
        folder_of = {label: folder for folder, label in folder_of.items()}
        return {folder_of[label]: [wnids[index_of[name]] for name in names.split("; ")] for label, names in names_of.items()}
    except (KeyError, IndexError, ValueError, AttributeError, TypeError, RecursionError) as e:
        raise BadInput(f"{mappings}: not ObjectNet's mapping files ({e!r})") from None


def read_folder(root):
    """Your own folders: train and val, and every further one a shifted domain."""
    domains = ["train", "val"] + sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".") and p.name not in ("train", "val"))
    rows = [Row(domain, path, name) for domain in domains for name, path in class_folders(root / domain)]
    return Rows({name: name for name in sorted({row.label for row in rows if row.split == "train"})}, rows, "val")


def read_csv(path):
    """Your own CSV file: each domain of its test rows apart; a domain "id", or test rows without a domain, are in-distribution."""
    rows = []
    for row in csv_rows(path, "path label split"):
        if row["split"] not in ("train", "val", "test"):
            raise BadInput(f"{path}: {row['path']} has the split {row['split']!r}; allowed: train, val, test")
        domain = row.get("domain") or "id"
        if row["split"] == "test" and domain in ("train", "val"):
            raise BadInput(f"{path}: {row['path']} has the domain {domain!r}; allowed: any other name")
        rows.append(Row(domain if row["split"] == "test" else row["split"], below(path.parent, row["path"], path), row["label"]))
    return Rows({name: name for name in sorted({row.label for row in rows if row.split == "train"})}, rows, "id")


READERS = dict(cifar10=read_cifar10, waterbirds=read_waterbirds, iwildcam=read_iwildcam, fmow=read_fmow, imagenet=read_imagenet,
               folder=read_folder, csv=read_csv)


# ---------------------------------------------------------------------------------------------------- pictures

def read_image(path, border=0):
    """An image file -> the RGB picture that a person would see, less `border` pixels on each side. Raises BadInput, which names the file.

    Upright as its EXIF says; transparency on white; 16 bits and floats scaled to 8; the first picture of several. Embedded
    colour profiles are not applied, as in the published pipelines.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as file:
                if file.format == "EPS":  # for which Pillow would start Ghostscript
                    raise ValueError("PostScript is a program, no picture")
                image = ImageOps.exif_transpose(file)
            if image.mode == "LAB":
                to_rgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
                image = ImageCms.applyTransform(image, to_rgb)
            elif image.mode[0] in "IF":  # I;16 and its kin, I (a 16-bit PNG in older Pillow) and F
                values = torch.tensor(list(image.getdata()), dtype=torch.float64).nan_to_num(0, 0, 0)
                low, high = (0, 65535) if image.mode != "F" and 0 <= values.min() and values.max() <= 65535 else (
                    (0, 1) if 0 <= values.min() and values.max() <= 1 else (values.min(), values.max()))
                values = ((values - low) / max(high - low, 1e-12) * 255).round().to(torch.uint8).reshape(image.height, image.width)
                image = Image.fromarray(values.numpy())
            elif "A" in image.mode or "a" in image.mode or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("RGB")
            if min(image.size) <= 2 * border or max(image.size) > 200 * min(image.size):
                raise ValueError(f"{image.width} x {image.height} pixels are no picture")
            return image.crop((border, border, image.width - border, image.height - border)) if border else image
    except Exception as e:  # Pillow's readers raise whatever a damaged file makes them stumble over
        raise BadInput(f"{path}: no image that can be read ({str(e)[:200]}); allowed in training only, with --skip-bad-images") from None


class Pictures(torch.utils.data.Dataset):
    """A split's images as a model wants them, by (number of a batch, indices) -> ((B, 3, H, W), {index: why it is not there})."""

    def __init__(self, split, transform, seed):
        self.split, self.transform, self.seed = split, transform, seed

    def __getitem__(self, item):
        number, indices = item
        prepared, bad = [], {}
        with torch.random.fork_rng(devices=[]):
            # Chance depends on seed and step alone: the same whoever reads, in whatever order, before and after a resume.
            torch.default_generator.manual_seed(self.seed * 1_000_003 + number)
            for i in indices.tolist():
                source = self.split.images[i]
                try:
                    picture = (Image.fromarray(source.permute(1, 2, 0).numpy()) if isinstance(source, torch.Tensor)
                               else read_image(source, self.split.border))
                    prepared.append(self.transform(picture))
                except Exception as e:  # it would arrive from a worker as a page of traceback
                    bad[i] = str(e) if isinstance(e, BadInput) else f"{source}: cannot be prepared ({e!r})"
        return torch.stack(prepared) if prepared else torch.empty(0), bad


def ignore_signals(worker):
    """Ctrl-C and SIGTERM are for the main process, which stops its workers itself; a signal to the group would kill them in mid-step."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def dead_workers_named():
    """When one of those processes dies, torch raises a RuntimeError in the main one, wherever that happens to be -> BadInput."""
    try:
        yield
    except RuntimeError as e:
        if "DataLoader worker" not in str(e):
            raise
        raise BadInput(f"--workers: {str(e)[:200]}; allowed: fewer, or 0, if memory is short") from None


def prepared_batches(model, split, batches, workers=None, seed=None, first=0):
    """Yield (images (B, 3, H, W), {index: why it is not there}) for each batch of indices, `first` being the number of the first one.

    With a seed, images are cropped at random for training. Those in memory and of the model's size go through as they are.
    """
    size = model.visual.image_size if isinstance(model.visual.image_size, tuple) else (model.visual.image_size,) * 2
    if isinstance(split.images, torch.Tensor) and split.images.shape[2:] == size:
        yield from ((split.images[batch], {}) for batch in batches)
        return
    transform = image_transform_v2(PreprocessCfg(**open_clip.get_model_preprocess_cfg(model) | dict(size=size)), is_train=seed is not None,
                                   aug_cfg=AugmentationCfg(scale=(0.9, 1.0)))  # the crop of FLYP's recipe
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = min(8, cores) if len(batches) > 1 else 0
    yield from torch.utils.data.DataLoader(
        Pictures(split, transform, seed or 0), sampler=list(enumerate(batches, first)), batch_size=None, num_workers=workers,
        worker_init_fn=ignore_signals,
        pin_memory=next(model.parameters()).is_cuda, generator=torch.Generator())  # its own: the run's chance is not touched


# ---------------------------------------------------------------------------------------- weights and checkpoints

def pick_device(name):
    """A name such as "cuda:1", or "auto" -> torch.device. Raises BadInput for one that is not there."""
    there = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    there += ["mps"] * torch.backends.mps.is_available() + ["cpu"]
    if name == "auto":
        return torch.device(there[0])
    if name not in there and not (name == "cuda" and torch.cuda.is_available()):
        raise BadInput(f"--device {name}: not on this machine; allowed: auto, {', '.join(there)}")
    return torch.device(name)


def load_clip(model, pretrained=None, device="cpu"):
    """An open_clip model with open_clip's own tokenizer -> (model in eval mode and float32, tokenizer). Raises BadInput.

    `model` is a name such as "ViT-B-16" (then `pretrained` is a tag or a file), "local-dir:FOLDER" or "hf-hub:OWNER/NAME".
    """
    state, activation = None, None
    if ":" not in model:
        if model not in open_clip.list_models():
            near = difflib.get_close_matches(model, open_clip.list_models(), 5, 0)
            raise BadInput(f"--model {model}: unknown to open_clip; allowed: local-dir:FOLDER, hf-hub:OWNER/NAME, or a name such "
                           f"as {', '.join(near)}")
        tags = open_clip.list_pretrained_tags_by_model(model)
        if pretrained in tags:
            activation = bool(open_clip.get_pretrained_cfg(model, pretrained).get("quick_gelu"))
        elif pretrained and os.path.isfile(pretrained):
            state, activation = read_weights(pretrained)
        else:
            raise BadInput(f"--pretrained {pretrained}: no weights for --model {model}, and random ones are no zero-shot model; "
                           f"allowed: a file, {', '.join(tags)}")
    elif pretrained:
        raise BadInput(f"--pretrained {pretrained}: --model {model} has its own weights; leave --pretrained out")
    if model.startswith("local-dir:"):
        folder = find(model.removeprefix("local-dir:"))
        if not os.path.isfile(folder / "open_clip_config.json"):
            raise BadInput(f"--model {model}: no open_clip_config.json there; allowed: a folder that open_clip saved")
        model = f"local-dir:{folder}"
        if os.path.isfile(folder / "drm.json"):
            activation = read_json(folder / "drm.json").get("quick_gelu")
    logging.disable(logging.CRITICAL)  # what matters of open_clip's log is said by the exception
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            clip = open_clip.create_model(model, None if state else pretrained, require_pretrained=not state, load_weights=not state,
                                          pretrained_text=False, force_quick_gelu=bool(activation) and ":" not in model, device=device)
            tokenizer = open_clip.get_tokenizer(model)
            tokenizer([""])
        if state:
            if "positional_embedding" in state and not hasattr(clip, "positional_embedding"):
                state = open_clip.model.convert_to_custom_text_state_dict(state)
            clip.load_state_dict(state, strict=True)
            log(f"{pretrained}: all {len(state)} tensors loaded into {model}")
        clip = clip.float().eval()
        cfg = PreprocessCfg(**open_clip.get_model_preprocess_cfg(clip))
        try:
            prepare = image_transform_v2(cfg, is_train=False)
        except AssertionError:
            raise ValueError(f"how does one prepare images by {cfg}?") from None
        with torch.no_grad():  # a look at nothing shows what would be found out later
            seen = clip.encode_image(prepare(Image.new("RGB", (64, 64)))[None].to(device)), clip.encode_text(tokenizer([""]).to(device))
        if not all(features.isfinite().all() for features in seen):
            raise ValueError("its features are not finite")
        clip.source = dict(model_cfg=open_clip.get_model_config(model))  # goes into the folders that are saved
    except ImportError as e:
        raise BadInput(f"--model {model}: its tokenizer or text tower needs a package that is not installed ({e}); pip install transformers") from None
    except Exception as e:  # damaged weights, another shape, no network: open_clip, safetensors and the hub raise many kinds
        raise BadInput(f"--model {model}: open_clip cannot load it: {str(e)[:300] or repr(e)}") from None
    finally:
        logging.disable(logging.NOTSET)
    clip.source["model_cfg"]["quick_gelu"] = quick_gelu = any(isinstance(m, open_clip.transformer.QuickGELU) for m in clip.modules())
    if activation is not None and activation != quick_gelu:
        raise BadInput(f"--model {model}: the weights were trained {'with' if activation else 'without'} QuickGELU, and this model would "
                       f"give other features; allowed: a model {'with' if activation else 'without'} it")
    return clip, tokenizer


def read_weights(path):
    """A file of weights -> (state dict, True if it is OpenAI's, hence QuickGELU, else None). Nothing is ever unpickled. Raises BadInput.

    safetensors, or a state dict saved by torch, also inside "state_dict" or "model" and with "module." or "model." before its names.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is said of TorchScript and old pickles is said below
            state = load_file(path) if str(path).endswith(".safetensors") else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:
        raise BadInput(f"--pretrained {path}: no plain state dict, and loading a pickled object would run code in it, which never happens "
                       f"here (FLYP's and DRM's .pt files and TorchScript are such); allowed: safetensors, or torch.save(model.state_dict()) "
                       f"({' '.join(str(e).split())[:120]})") from None
    for key in ("state_dict", "model") * 2:  # one in the other, in either order
        state = state[key] if isinstance(state, dict) and isinstance(state.get(key), dict) else state
    if not (isinstance(state, dict) and state and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items())):
        raise BadInput(f"--pretrained {path}: no state dict; allowed: names with tensors")
    for prefix in ("module.", "model.", "module."):
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    openai = [state.pop(key, None) is not None for key in ("input_resolution", "context_length", "vocab_size")]
    return state, True if any(openai) else None


def read_json(path):
    """A JSON file -> dict. Raises BadInput."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise BadInput(f"{path}: cannot be read as JSON ({e})") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path}: holds no object")
    return content


def make_folder(path, inner=None):
    """Make a folder and try it. Raises BadInput where it cannot be written, or where what has the name `inner` in it is no folder."""
    try:
        if inner and not (Path(path) / inner).is_dir() and os.path.lexists(Path(path) / inner):
            raise BadInput(f"--out: {Path(path) / inner} cannot be written, as what is there is no folder; allowed: a folder, or nothing")
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as e:
        raise BadInput(f"--out {path}: cannot be written ({e.strerror}); allowed: an existing folder or one that can be made") from None


def save_clip(folder, model, tokenizer, about):
    """A model as a folder that open_clip loads with local-dir:, with drm.json beside it: what it was trained on and how it is used."""
    folder.mkdir(parents=True)
    prepare = {k: v for k, v in open_clip.get_model_preprocess_cfg(model).items() if k in ("mean", "std", "interpolation", "resize_mode")}
    config = model.source | dict(preprocess_cfg=prepare)
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    (folder / "drm.json").write_text(json.dumps(about | dict(quick_gelu=config["model_cfg"]["quick_gelu"]), indent=1) + "\n", encoding="utf-8")
    save_file({k: v.detach().cpu().clone() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    if hasattr(tokenizer, "save_pretrained"):  # open_clip looks for them in the folder
        tokenizer.save_pretrained(folder)


def read_saved(folder, methods):
    """The drm.json of a model that is to be evaluated. Raises BadInput where it is not one that a run wrote."""
    saved = read_json(folder / "drm.json")

    def is_number(value, low, high):
        return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high

    prompts = saved.get("prompts")
    heads = [prompts.get(head) for head in ("default", "concept")] if isinstance(prompts, dict) else [None]
    if not (all(isinstance(head, dict) and all(isinstance(texts, list) and texts and all(isinstance(t, str) for t in texts)
                                               for texts in head.values()) for head in heads)
            and isinstance(saved.get("seed"), int) and saved.get("method") in [m for m in methods if m != "zero-shot"] and is_number(saved.get("beta"), 0, 1)
            and is_number(saved.get("seed"), 0, 2**31) and (saved.get("lam") is None or is_number(saved["lam"], 0, 1e6))):
        raise BadInput(f"--eval-only --model local-dir:{folder}: its drm.json is not one that a run wrote")
    return saved


class Stopped(Exception):
    """SIGINT or SIGTERM came, and a checkpoint was saved: the message says how to go on."""


@contextlib.contextmanager
def stop_requested(active):
    """Within it, SIGINT and SIGTERM are no end but make the list that it gives non-empty, so that the step can be finished."""
    came, old = [], {}
    if active and threading.current_thread() is threading.main_thread():
        old = {s: signal.signal(s, lambda number, frame: came.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)


class Checkpoints:
    """The checkpoints of one training: folder/step-N while it runs, one at a time, and folder/model when it is finished.

    about: what decides the training. With resume, load() goes on from what is there, and refuses what another training left.
    """

    def __init__(self, folder, tokenizer, about, resume):
        self.folder, self.tokenizer, self.about, self.resume = folder, tokenizer, about, resume
        self.last, self.finished = None, False

    def steps(self):
        return sorted((p for p in self.folder.glob("step-*") if p.name[5:].isdecimal()), key=lambda p: int(p.name[5:]))

    def load(self, model, optimizer, scaler):
        """-> (losses of the steps taken, the best weights so far), with everything put back in its place."""
        # steps first: finish() removes them, so that beside a finished model they are of a run that was begun after it
        there = [p for p in (*reversed(self.steps()), self.folder / "model", self.folder / "model.old") if p.is_dir()]
        if not (self.resume and there):
            return [], {}
        self.last, saved, device = there[0], read_json(there[0] / "drm.json"), str(next(model.parameters()).device)
        recipe, prompts = saved.get("recipe"), saved.get("prompts")
        changed = [key for key, value in self.about["recipe"].items() if not isinstance(recipe, dict) or recipe.get(key) != value]
        if changed or prompts != self.about["prompts"]:
            raise BadInput(f"--resume: {self.last} was trained with another {', '.join(changed) or 'set of prompts'}; allowed: the same, or another --out")
        try:
            losses, best = saved["losses"], {}
            model.load_state_dict(load_file(self.last / "open_clip_model.safetensors", device=device))
            self.finished = self.last.name.startswith("model")
            if self.finished:
                log(f"{self.last}: finished before, loaded")
                return losses, best
            if self.last.name != f"step-{len(losses)}" or not all(isinstance(loss, float) for loss in losses):
                raise ValueError("its losses are not those of its steps")
            flat, state = load_file(self.last / "optimizer.safetensors", device=device), {}
            shapes = [p.shape for group in optimizer.param_groups for p in group["params"]]
            for name, tensor in flat.items():
                number, key = name.split(".")
                state.setdefault(int(number), {})[key] = tensor
                if key != "step" and tensor.shape != shapes[int(number)]:
                    raise ValueError("its optimizer belongs to another model")
            if not state:
                raise ValueError("its optimizer has taken no step")
            optimizer.load_state_dict(optimizer.state_dict() | dict(state=state))
            scaler.load_state_dict(saved["scaler"])
            if saved["best"]:
                best = dict(score=float(saved["best"]["score"]), epoch=int(saved["best"]["epoch"]), state=load_file(self.last / "best.safetensors"))
                if {k: v.shape for k, v in best["state"].items()} != {k: v.shape for k, v in model.state_dict().items()}:
                    raise ValueError("its best weights belong to another model")
        except (OSError, SafetensorError, LookupError, ValueError, RuntimeError, AttributeError, TypeError) as e:
            raise BadInput(f"--resume: {self.last} is damaged ({str(e)[:200]}); remove it to start anew") from None
        log(f"{self.last}: going on after step {len(losses)}")
        return losses, best

    def save(self, model, optimizer, scaler, losses, best):
        def save(folder):
            progress = dict(losses=losses, scaler=scaler.state_dict(), best={k: v for k, v in best.items() if k != "state"})
            save_clip(folder, model, self.tokenizer, self.about | progress)
            save_file({f"{number}.{key}": tensor for number, of_one in optimizer.state_dict()["state"].items()
                       for key, tensor in of_one.items()}, folder / "optimizer.safetensors")
            if best:
                save_file(best["state"], folder / "best.safetensors")

        self.last = self.folder / f"step-{len(losses)}"
        write(self.last, save)
        self.clear()

    def finish(self, model, losses):
        self.last = self.folder / "model"
        write(self.last, lambda folder: save_clip(folder, model, self.tokenizer, self.about | dict(losses=losses)))
        self.clear()

    def clear(self):
        """Remove all steps but the last; renamed first, so that half a one is never taken for a checkpoint."""
        for older in self.steps():
            if older != self.last:
                os.replace(older, older.with_name(older.name + ".old"))
        for leftover in self.folder.glob("step-*"):
            if leftover.stem[5:].isdecimal() and leftover.suffix in (".tmp", ".old"):
                shutil.rmtree(leftover, ignore_errors=True)
