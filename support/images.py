"""Pictures: one file -> the RGB picture that a person sees; many -> the batches that a model wants."""

import os
import signal
import warnings

import numpy as np
import open_clip
import torch
from open_clip.transform import AugmentationCfg, PreprocessCfg, image_transform_v2
from PIL import Image, ImageOps
from tqdm import tqdm

from support.errors import BadInput

SILENT = 5  # seconds of encoding before a bar shows it
Image.init()
# Not EPS, for which Pillow starts Ghostscript, nor what is more a program or a document than a picture.
NAMES = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
FORMATS = tuple(name for name in NAMES if name in Image.OPEN)
EXTENSIONS = {end for end, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO")}


class ImageFiles:
    """N image files as a split holds them, and how they are read: like a tensor, but nothing is loaded."""

    def __init__(self, paths, border=0, workers=None):
        self.paths, self.border, self.workers = list(paths), border, workers

    def __len__(self):
        return len(self.paths)

    def __iter__(self):
        return iter(self.paths)

    def __getitem__(self, kept):
        """By numbers (M,) -> those files."""
        return ImageFiles([self.paths[int(i)] for i in kept], self.border, self.workers)


def read_image(path, border=0):
    """An image file -> RGB, less `border` pixels on each side. Raises BadInput, which names the file.

    Upright as its EXIF says; transparency on white; 16 bits and floats scaled to 8; the first picture of
    several. Embedded colour profiles are not applied, as in the published pipelines.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as file:
                image = ImageOps.exif_transpose(file)
            if image.mode[0] in "IF":  # I;16 and its kin, I and F
                image = Image.fromarray(to_8_bits(np.asarray(image, dtype=np.float64), image.mode))
            elif image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("RGB")
        if min(image.size) <= 2 * border or max(image.size) > 200 * min(image.size):
            raise ValueError(f"{image.width} x {image.height} pixels are no picture")
        return ImageOps.crop(image, border) if border else image
    except Exception as e:  # Pillow's readers raise whatever a damaged file makes them stumble over
        why = f"no image that can be read ({str(e)[:200]})"
        raise BadInput(f"{path}: {why}; allowed in training only, with --skip-bad-images") from None


def to_8_bits(values, mode):
    """Values of 16 bits, or from 0 to 1 -> uint8. Values outside of both are spread over the range."""
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = values.min(), values.max()
    if mode != "F" and low >= 0 and high <= 65535:
        low, high = 0, 65535
    elif low >= 0 and high <= 1:
        low, high = 0, 1
    return np.round((values - low) / max(high - low, 1e-12) * 255).astype(np.uint8)


class Batches(torch.utils.data.Dataset):
    """(number of a batch, indices) -> (number, images (B, 3, H, W), {index: why it is not there})."""

    def __init__(self, images, transform, seed):
        self.images, self.transform, self.seed = images, transform, seed

    def __getitem__(self, item):
        number, indices = item
        prepared, bad = [], {}
        with torch.random.fork_rng(devices=[]):
            # Chance depends on seed and step alone: the same whoever reads, and after a resume too.
            torch.default_generator.manual_seed((self.seed or 0) * 1_000_003 + number)
            for i in indices.tolist():
                try:
                    prepared.append(self.transform(self.picture(i)))
                except BadInput as e:
                    bad[i] = str(e)
                except Exception as e:  # it would arrive from a worker as a page of traceback
                    name = self.images.paths[i] if isinstance(self.images, ImageFiles) else f"image {i}"
                    bad[i] = f"{name}: cannot be prepared ({e!r})"
        return number, torch.stack(prepared) if prepared else torch.empty(0), bad

    def picture(self, i):
        if isinstance(self.images, torch.Tensor):
            return Image.fromarray(self.images[i].permute(1, 2, 0).numpy())
        return read_image(self.images.paths[i], self.images.border)


def image_batches(model, split, batches, seed=None, first=0, bad=None):
    """Yield (number, images (B, 3, H, W)) for each batch of indices; the first one has the number `first`.

    With a seed, images are cropped at random for training, down to `split.crop` of their area. Images that
    cannot be read are left out and noted in `bad`, {index: reason}; without it they are refused (BadInput).
    Pictures in memory that need neither a crop nor another size are yielded as they are, uint8.
    """
    random_crop = seed is not None and split.crop < 1
    size = model.visual.image_size
    size = size if isinstance(size, tuple) else (size, size)
    if isinstance(split.images, torch.Tensor) and split.images.shape[2:] == size and not random_crop:
        for number, batch in enumerate(batches, first):
            yield number, split.images[batch]
        return
    cfg = PreprocessCfg(**open_clip.get_model_preprocess_cfg(model) | {"size": size})
    augment = AugmentationCfg(scale=(split.crop, 1.0))
    transform = image_transform_v2(cfg, is_train=random_crop, aug_cfg=augment)
    workers = worker_count(split.images, len(batches))
    loader = torch.utils.data.DataLoader(
        Batches(split.images, transform, seed),
        sampler=list(enumerate(batches, first)),
        batch_size=None,
        num_workers=workers,
        worker_init_fn=ignore_signals,
        pin_memory=next(model.parameters()).is_cuda,
        generator=torch.Generator(),  # its own: the run's chance is not touched
    )
    about = {"desc": "encoding", "unit": "batch", "leave": False, "disable": seed is not None}
    for number, images, unreadable in tqdm(loader, delay=SILENT, **about):  # a training has a bar of its own
        if unreadable and bad is None:
            raise BadInput(next(iter(unreadable.values())))
        if unreadable:
            bad.update(unreadable)
        if len(images):
            yield number, images


def worker_count(images, n_batches):
    """The processes that read: as many as there are cores, 8 at most, unless the reader said."""
    workers = getattr(images, "workers", None)
    if workers is not None:
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores) if n_batches > 1 else 0


def ignore_signals(worker):
    """Ctrl-C and SIGTERM are for the main process; one to the whole group would kill workers in mid-step."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
