"""Pictures: one file -> the RGB picture that a person sees; many -> the batches that a model wants."""

import atexit
import contextlib
import io
import multiprocessing
import os
import re
import signal
import warnings
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.transform import AugmentationCfg, PreprocessCfg, image_transform_v2
from PIL import Image, ImageOps
from torchvision.transforms import Compose, Normalize, PILToTensor, ToTensor
from tqdm import tqdm

from support.errors import BadInput

with contextlib.suppress(ImportError):  # who has photos in HEIC installs it
    import pillow_heif

    pillow_heif.register_heif_opener()

SILENT = 5  # seconds of encoding before a bar shows it
Image.init()
# Not EPS, for which Pillow starts Ghostscript, nor what is more a program or a document than a picture.
NAMES = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
FORMATS = tuple(name for name in NAMES if name in Image.OPEN)
EXTENSIONS = {end for end, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO")}
# Photos that Pillow cannot open -> what helps.
HELP = dict.fromkeys(".arw .cr2 .cr3 .dng .jxl .nef .orf .raf .rw2".split(), "save them as JPEG")
HELP |= dict.fromkeys(".heic .heif .hif".split(), "pip install pillow-heif")
HELP |= {".avif": "pip install -U pillow"}
HELP = {end: what for end, what in HELP.items() if end not in EXTENSIONS}
ORIENTATION = 0x0112  # the tag of EXIF
UPRIGHT = dict(enumerate((0, 3, 1, 5, 4, 6, 2), 2))  # its value -> the Image.Transpose that undoes it
MARKER = re.compile(rb"\xff([^\x00\xff])")  # of JPEG
METADATA = bytes({*range(0xE0, 0xF0), 0xFE} - {0xEE})  # markers without which the pixels are the same
CRITICAL = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # PNG's chunks that the pixels need


class ImageFiles:
    """N image files as a split holds them, and how they are read: like a tensor, but nothing is loaded."""

    def __init__(self, paths, border=0, workers=None):
        self.paths, self.border, self.workers = list(paths), border, workers

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, kept):
        """By numbers (M,) -> those files."""
        return ImageFiles([self.paths[int(i)] for i in kept], self.border, self.workers)


def read_image(path, border=0, least=None):
    """An image file -> RGB, less `border` pixels on each side. Raises BadInput, which names the file.

    Upright as its EXIF says; transparency on white; 16 bits and floats scaled to 8; the first picture of
    several. Embedded colour profiles are not applied, as in the published pipelines. Faults in metadata cost
    no picture. A JPEG may come at a half to an eighth of its size, but with no side shorter than `least`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                image = decode(path, least=None if border else least)
            except Exception as e:
                try:  # the pixels may be sound
                    image = decode(*without_metadata(Path(path).read_bytes()))
                except Exception:
                    raise e from None
        check_size(image.size, border)
        if image.mode[0] in "IF":  # I;16 and its kin, I and F
            image = Image.fromarray(to_8_bits(np.asarray(image)))
        elif image.has_transparency_data:
            image = image if image.mode == "RGBA" else image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image if image.mode == "RGB" else image.convert("RGB")  # which copies even what is RGB
        return ImageOps.crop(image, border) if border else image
    except Exception as e:  # Pillow's readers raise whatever a damaged file makes them stumble over
        end = os.path.splitext(path)[1].lower()
        why = f"no image that can be read ({HELP.get(end) or str(e)[:200]})"
        raise BadInput(f"{path}: {why}; allowed in training only, with --skip-bad-images") from None


def check_size(size, border):
    if min(size) <= 2 * border or max(size) > 200 * min(size):
        raise ValueError(f"{size[0]} x {size[1]} pixels are no picture")


def decode(file, exif=None, least=None):
    """A file -> its picture, upright. With `exif`, of without_metadata, that is all the metadata it has."""
    with Image.open(file, formats=FORMATS) as image:
        if least:
            image.draft(None, (least, least))
        if exif is not None:
            image.info["exif"] = exif
        image.load()
        try:
            value = image.getexif()[ORIENTATION]
            turn = UPRIGHT.get(int(value[0] if isinstance(value, (bytes, tuple)) else value))
        except Exception:  # it has none, or none that can be read
            turn = None
        return image if turn is None else image.transpose(turn)


def without_metadata(data):
    """A PNG or JPEG as bytes -> (the file without what its pixels do not need, the bytes of its EXIF)."""
    kept, exif = data, b""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        kept, at = bytearray(data[:8]), 8
        while at < len(data):
            kind, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4], "big")
            exif = data[at + 8 : end - 4] if kind == b"eXIf" else exif
            kept += data[at:end] if kind in CRITICAL else b""
            at = end
    elif data.startswith(b"\xff\xd8"):  # JPEG
        kept, at = bytearray(data[:2]), 2
        while (found := MARKER.search(data, at)) and found[1] != b"\xda":  # which begins the pixels
            start, at = found.end(), found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
            exif += data[start + 8 : at] if data[start + 2 : start + 8] == b"Exif\0\0" else b""
            kept += b"" if found[1] in METADATA else data[found.start() : at]
        kept += data[found.start() :] if found else b""
    return io.BytesIO(kept), exif


def to_8_bits(values):
    """Values of 16 bits, or from 0 to 1 -> uint8. Values outside of both are spread over the range."""
    if values.dtype.itemsize == 2:
        return np.rint(values * np.float32(1 / 257)).astype(np.uint8)
    whole, values = values.dtype.kind == "i", np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if whole and low >= 0 and high <= 65535:
        low, high = 0, 65535
    elif low >= 0 and high <= 1:
        low, high = 0, 1
    return np.round((values - low) / max(high - low, 1e-12) * 255).astype(np.uint8)


def images_below(folder):
    """-> (paths of images, of what is none or hidden) in a folder, and in its folders but hidden ones."""
    images, others, left, seen = [], [], [folder], {folder.resolve(), *folder.resolve().parents}
    while left:
        inner = []
        for path in sorted(left.pop().iterdir()):
            hidden = path.name.startswith(".")
            if path.is_dir() and not hidden and path.resolve() not in seen:  # as a link back would be
                seen.add(path.resolve())
                inner.append(path)
            elif path.suffix.lower() in EXTENSIONS and path.is_file() and not hidden:
                images.append(path)
            else:
                others.append(path)
        left += reversed(inner)
    return images, others


def check_files(files):
    """Before training. Raises BadInput for the first of (path, border) that is no whole image.

    Of a JPEG its header and its last two bytes tell, of a PNG its checksums; all else is read.
    """

    def check(file):
        with contextlib.suppress(Exception), open(file[0], "rb") as data:
            with Image.open(data, formats=FORMATS) as image:
                check_size(image.size, file[1])
                data.seek(-2, os.SEEK_END)
                if image.format in ("JPEG", "MPO") and data.read() == b"\xff\xd9":
                    return
                if image.format == "PNG":
                    image.verify()
                    return
        read_image(*file)

    with warnings.catch_warnings(), ThreadPool(8) as threads:
        warnings.simplefilter("ignore")
        done = threads.imap(check, files, chunksize=32)
        for _ in tqdm(done, "opening val and tests", len(files), leave=False, delay=2, disable=None):
            pass


class Batches(torch.utils.data.Dataset):
    """A batch that is to be prepared -> (number, images (B, 3, H, W) uint8, {index: why it is not there})."""

    def __getitem__(self, item):
        number, indices, images, transform, least, seed = item
        prepared, bad = [], {}
        with torch.random.fork_rng(devices=[]):
            # Chance depends on seed and step alone: the same whoever reads, and after a resume too.
            torch.default_generator.manual_seed((seed or 0) * 1_000_003 + number)
            for i, index in enumerate(indices):
                try:
                    if torch.is_tensor(images):
                        image = Image.fromarray(images[i].permute(1, 2, 0).numpy())
                    else:
                        image = read_image(images.paths[i], images.border, least)
                    prepared.append(transform(image))
                except BadInput as e:
                    bad[index] = str(e)
                except Exception as e:  # it would arrive from a worker as a page of traceback
                    name = images.paths[i] if isinstance(images, ImageFiles) else f"image {index}"
                    bad[index] = f"{name}: cannot be prepared ({e!r})"
        return number, torch.stack(prepared).contiguous() if prepared else torch.empty(0), bad


class Pass:
    """A sampler: the items of one pass over images, exchanged for those of the next."""

    items = ()

    def __iter__(self):
        return iter(self.items)


IDLE = {}  # loaders between two passes, where processes are spawned: to start them takes seconds
atexit.register(IDLE.clear)  # before Python itself would end their processes, by the SIGTERM that they ignore


def image_batches(model, split, batches, seed=None, first=0, bad=None):
    """Yield (number, images (B, 3, H, W) uint8) for each batch of indices; the first has the number `first`.

    With a seed, images are cropped at random for training, down to `split.crop` of their area. Images that
    cannot be read are left out and noted in `bad`, {index: reason}; without it they are refused (BadInput).
    Pictures in memory that need neither a crop nor another size are yielded as they are.
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
    steps = image_transform_v2(cfg, is_train=random_crop, aug_cfg=augment).transforms
    # Floats are for image_features to make, where the model is: uint8 is a quarter of the way there.
    transform = Compose([s for s in steps if not isinstance(s, (ToTensor, Normalize))] + [PILToTensor()])
    least = int(2 * max(size) / split.crop**0.5)  # of which a crop is still twice the model's size
    workers, pinned = worker_count(split.images, sum(map(len, batches))), next(model.parameters()).is_cuda
    loader = IDLE.pop((workers, pinned), None)
    if loader is None:
        loader = torch.utils.data.DataLoader(
            Batches(),
            sampler=Pass(),
            batch_size=None,
            num_workers=workers,
            worker_init_fn=ignore_signals,
            persistent_workers=workers > 0 and multiprocessing.get_start_method() != "fork",
            pin_memory=pinned,
            generator=torch.Generator(),  # its own: the run's chance is not touched
        )
    loader.sampler.items = (
        (number, batch.tolist(), split.images[batch], transform, least, seed)
        for number, batch in enumerate(batches, first)
    )
    about = {"desc": "encoding", "unit": "batch", "leave": False, "disable": seed is not None}
    for number, images, unreadable in tqdm(loader, delay=SILENT, **about):  # a training has a bar of its own
        if unreadable and bad is None:
            raise BadInput(next(iter(unreadable.values())))
        if unreadable:
            bad.update(unreadable)
        if len(images):
            yield number, images
    if loader.persistent_workers:
        IDLE[workers, pinned] = loader
    if bad and len(bad) == sum(map(len, batches)):
        raise BadInput(f"of {len(bad)} images none can be read: {bad[min(bad)].partition('; allowed')[0]}")


def worker_count(images, n):
    """The processes that read n images: as many as there are cores, 16 at most, unless the reader said."""
    workers = getattr(images, "workers", None)
    if workers is not None:
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, cores) if n >= 500 else 0  # a few are read before a process has started


def ignore_signals(worker):
    """Ctrl-C and SIGTERM are for the main process; one to the whole group would kill workers in mid-step."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
