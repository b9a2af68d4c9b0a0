#!/usr/bin/env python3
"""What DRM costs: ratios of time and memory, side by side on the machine at hand. No part of the test run.

    python tests/bench.py                          all of it (on two cores, have lunch)
    python tests/bench.py --only drm_vs text       the parts whose names begin so
    python tests/bench.py --json ratios.json       and {"name": {"ratio": ...}} to a file
    python tests/bench.py --model ViT-B-16         another model; a GPU has the memory for it

The model is open_clip's ViT-B/32 with random weights, on which no time depends. What is compared takes turns
in one process, step by step, so that a slow minute is everyone's; a ratio is that of the fastest of each.
On a GPU the same runs there, and tests/gpu.py measures what only a GPU can tell.
"""

import argparse
import contextlib
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from unittest.mock import patch

import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import drm_min
import support.texts
from support.errors import write_json
from support.images import ImageFiles, image_batches
from support.weights import encode_text, mixed_precision, pick_device

DEVICE = pick_device("auto")
MODEL = ["ViT-B-32"]  # the name that new_model() builds, as --model says
ERM = drm_min.Job("erm", 0, ("default",), 0.0, 1.0)
DRM = drm_min.Job("drm", 0, ("default", "concept"), 1.0, 0.5, "softmax")


def clock():
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def fastest(rounds, **runs):
    """-> {name: seconds}, the fastest of `rounds` turns after one that does not count.

    The fastest, as whatever else the machine does only adds.
    """
    seconds = {name: [] for name in runs}
    for i in range(rounds + 1):
        for name, run in runs.items():
            start = clock()
            run()
            if i:
                seconds[name].append(clock() - start)
    return {name: min(values) for name, values in seconds.items()}


def new_model():
    torch.manual_seed(0)
    return open_clip.create_model(MODEL[0]).to(DEVICE)


def image_size():
    return open_clip.get_model_config(MODEL[0])["vision_cfg"]["image_size"]


def classes_in(prompts):
    return int(prompts.default.owner.max()) + 1


def prompts_of(dataset, classes=None):
    """Prompts of a data set's first classes, with its own template and descriptions."""
    root, tokenizer = None if dataset == "toy" else ".", open_clip.get_tokenizer("ViT-B-32")
    config = drm_min.Config(dataset=dataset, data_root=root)
    of_head = support.texts.prompts_of(config, support.texts.read_classes(ROOT / config.descriptions))
    some = [list(of_head[head].values())[:classes] for head in drm_min.Prompts._fields]
    return drm_min.Prompts(*(drm_min.tokenize(tokenizer, own, device=DEVICE) for own in some))


def a_batch(classes, size):
    """Images (B, 3, H, W), uint8, and labels (B,), evenly of all classes or, with more, of B of them."""
    g = torch.Generator().manual_seed(0)
    images = torch.randint(256, (size, 3, image_size(), image_size()), generator=g, dtype=torch.uint8)
    if DEVICE.type == "cuda":
        images = images.pin_memory()  # as drm_min's loader does
    return images, torch.randperm(max(classes, size), generator=g)[:size] % classes


def autocast():
    """The one of drm_min.train."""
    return torch.autocast("cuda", torch.bfloat16) if DEVICE.type == "cuda" else contextlib.nullcontext()


def prepared(model, images):
    """uint8 (B, 3, H, W) -> what the image tower reads, on the device."""
    cfg = open_clip.get_model_preprocess_cfg(model)
    mean, std = (torch.tensor(cfg[k], device=DEVICE)[:, None, None] for k in ("mean", "std"))
    return (images.to(DEVICE).float() / 255 - mean) / std


def our_steps(model, prompts, *jobs, size=32, **options):
    """-> for each job a function that takes one training step on the model, as drm_min.train does."""
    images, labels = a_batch(classes_in(prompts), size)
    targets = torch.full((size, classes_in(prompts)), 1 / classes_in(prompts), device=DEVICE)
    config = drm_min.Config(batch_size=size, **options)
    half = mixed_precision(config.precision, DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.2, fused=True)
    batch, labels = torch.arange(size), labels.to(DEVICE)

    def step(job):
        model.train()
        model.set_grad_checkpointing(config.grad_checkpointing)
        drm_min.batch_gradients(model, images, labels, batch, prompts, targets.__getitem__, job, half, config)
        optimizer.step()
        optimizer.zero_grad()

    return [partial(step, job) for job in jobs]


def plain_flyp_step(model, prompts, size=32):
    """FLYP's step in the usual way: 77 tokens of text an image, a pass of each tower, AdamW as it comes."""
    images, labels = a_batch(classes_in(prompts), size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.2)
    identity = torch.arange(size, device=DEVICE)

    def step():
        model.train()
        with autocast():
            x, t, scale = model(prepared(model, images), prompts.default.tokens[labels])[:3]  # (B, D), (B, D)
        logits = scale * x.float() @ t.float().T  # (B, B)
        loss = (F.cross_entropy(logits, identity) + F.cross_entropy(logits.T, identity)) / 2
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


# Each part is a generator of lines: name, ratio (None where it is no ratio), and what was measured.


def drm_vs(rounds):
    toy, fmow, model = prompts_of("toy"), prompts_of("fmow", 8), new_model()
    erm, drm = our_steps(model, toy, ERM, DRM)
    long_erm, long_drm = our_steps(model, fmow, ERM, DRM)
    runs = dict(flyp=plain_flyp_step(model, toy), erm=erm, drm=drm, long_erm=long_erm, long_drm=long_drm)
    s = fastest(4 * rounds, **runs)
    said = {name: f"{seconds:.2f} s" for name, seconds in s.items()}
    short = f"a step: DRM {said['drm']}, plain FLYP {said['flyp']}; 8 classes (toy), batch 32"
    yield "drm_vs_flyp", s["drm"] / s["flyp"], short
    yield "drm_vs_erm", s["drm"] / s["erm"], f"a step: DRM {said['drm']}, our ERM {said['erm']}; the same"
    long = f"DRM {said['long_drm']}; the first 8 classes of FMoW, texts of up to 34 tokens"
    yield "drm_vs_flyp, long texts", s["long_drm"] / s["flyp"], long
    both = f"DRM {said['long_drm']}, ERM {said['long_erm']}; the same"
    yield "drm_vs_erm, long texts", s["long_drm"] / s["long_erm"], both


def split_of_a_step(rounds):
    """Where a step's time goes."""
    prompts, model = prompts_of("toy"), new_model()
    images, labels = a_batch(8, 32)
    x = prepared(model, images)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    heads = [drm_min.build_head(model, texts).detach().requires_grad_() for texts in prompts]
    targets, labels = torch.full((32, 8), 1 / 8, device=DEVICE), labels.to(DEVICE)
    kept = {}

    def forward():
        with autocast():
            kept["features"] = drm_min.image_features(model, x).float()

    def text():
        for texts in prompts:
            with autocast():
                head = drm_min.build_head(model, texts)
            head.float().sum().backward()

    def loss():
        leaf = kept["features"].detach().requires_grad_()
        total, _, _ = drm_min.dual_loss(leaf, *heads, drm_min.logit_scale(model), labels, targets)
        total.backward()
        kept["gradient"] = leaf.grad

    def backward():
        kept["features"].backward(kept["gradient"])

    runs = dict(forward=forward, loss=loss, backward=backward, text=text, optimizer=optimizer.step)
    s = fastest(rounds, **runs)
    whole = sum(s.values())
    names = dict(forward="image forward", backward="image backward", loss="dual loss", optimizer="AdamW")
    names["text"] = "text, both heads, forward and backward"
    for name, what in names.items():
        yield f"share of a DRM step: {what}", s[name] / whole, f"{s[name]:.3f} s of {whole:.2f} s"


def classes(rounds):
    checkpointed = dict(grad_checkpointing=True)
    for dataset, loss, how, said in (
        ("cifar10", "ce", {}, ""),
        ("fmow", "ce", {}, ""),
        ("iwildcam", "ce", {}, ""),
        ("imagenet", "ce", checkpointed, " --grad-checkpointing"),
        ("imagenet", "flyp", {}, ""),
    ):
        prompts, jobs = prompts_of(dataset), (job._replace(loss=loss) for job in (ERM, DRM))
        erm, drm = our_steps(new_model(), prompts, *jobs, **how)
        s = fastest(1 if how else rounds, erm=erm, drm=drm)  # a step of the longest takes minutes
        name = f"drm_vs_erm, {classes_in(prompts)} classes, --loss {loss}{said}"
        yield name, s["drm"] / s["erm"], f"DRM {s['drm']:.2f} s, ERM {s['erm']:.2f} s; {dataset}, batch 32"


def transformer_flops(width, layers, context):
    """Floating-point operations of one token's way forward through a transformer, attention included."""
    return layers * (2 * 12 * width**2 + 4 * context * width)


def flops():
    """-> (of an image, of a token of text) forward, from the shapes of the model."""
    config = open_clip.get_model_config(MODEL[0])
    vision, text = config["vision_cfg"], config["text_cfg"]
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    embed = 2 * patches * 3 * vision["patch_size"] ** 2 * vision["width"]
    image = (patches + 1) * transformer_flops(vision["width"], vision["layers"], patches + 1) + embed
    return image, transformer_flops(text["width"], text["layers"], 20)


def tokens_of(texts):
    """All tokens of a head's texts, each up to its end."""
    return int((texts.tokens.argmax(1) + 1).sum())


RECIPES = {"fmow": 256, "iwildcam": 256, "imagenet": 512}  # FLYP's batches


def operations_a_second(rounds):
    """-> (of the image tower, of the text tower) forward and backward: they are not equally fast."""
    model, prompts, size = new_model(), prompts_of("fmow"), 64
    x = prepared(model, a_batch(8, size)[0])

    def image():
        with autocast():
            drm_min.image_features(model, x).sum().backward()

    def text():
        with autocast():
            encode_text(model, prompts.concept.tokens).sum().backward()

    s = fastest(rounds, image=image, text=text)
    of_image, of_token = flops()
    return 3 * size * of_image / s["image"], 3 * tokens_of(prompts.concept) * of_token / s["text"]


def recipes(rounds):
    """DRM's step against ERM's at the recipes' batches: by arithmetic, and measured."""
    image, token = flops()
    of_image, of_text = operations_a_second(rounds)
    said = f"{of_text / 1e9:.0f} against {of_image / 1e9:.0f} billion operations a second, both ways"
    yield "speed of the text tower, of the image tower's", of_text / of_image, said
    for dataset, size in RECIPES.items():
        prompts = prompts_of(dataset)
        default, concept = map(tokens_of, prompts)
        of_erm = size * image + default * token
        counted = (of_erm + concept * token) / of_erm
        how = {"size": size, "accumulate": 1 if DEVICE.type == "cuda" else size // 64}
        how["grad_checkpointing"] = DEVICE.type != "cuda" and dataset == "imagenet"  # 36,000 tokens at once
        erm, drm = our_steps(new_model(), prompts, ERM, DRM, **how)
        s = fastest(1 if how["grad_checkpointing"] else rounds, erm=erm, drm=drm)
        ratio = s["drm"] / s["erm"]
        said = f"by arithmetic {counted:.2f}; DRM {s['drm']:.1f} s, ERM {s['erm']:.1f} s; "
        said += f"{default} tokens of names, {concept} of descriptions; "
        said += f"--accumulate {how['accumulate']} in both"
        said += ", --grad-checkpointing" * how["grad_checkpointing"]
        name = f"recipe: {dataset}, {classes_in(prompts)} classes, batch {size}"
        yield name, ratio, said
        parts = [size * image / of_image, default * token / of_text, concept * token / of_text]
        shares = "{:.0%} images, {:.0%} names, {:.0%} descriptions".format(*(p / sum(parts) for p in parts))
        said = f"with the towers' speeds above; of DRM's step {shares}"
        yield f"recipe: {dataset}, expected", sum(parts) / sum(parts[:2]), said


def packed(model, tokens, room=512):
    """Tokens (T, L) -> unit text embeddings (T, D), without any padding: texts one behind the other, in
    sequences of about `room` tokens, each seeing itself alone (a block-diagonal causal mask). To compare."""
    lengths = (tokens.argmax(1) + 1).tolist()
    features, first = [], 0
    while first < len(lengths):
        last, n = first, 0
        while last < len(lengths) and (n == 0 or n + lengths[last] <= room):
            n += lengths[last]
            last += 1
        own = torch.tensor(lengths[first:last], device=tokens.device)
        text = torch.repeat_interleave(torch.arange(last - first, device=tokens.device), own)  # (n,)
        starts = own.cumsum(0) - own
        place = torch.arange(n, device=tokens.device) - starts[text]
        sees = (text[:, None] == text[None]) & (place[:, None] >= place[None])
        mask = torch.zeros(n, n, device=tokens.device).masked_fill_(~sees, float("-inf"))
        x = model.token_embedding(tokens[first + text, place]) + model.positional_embedding[place]
        x = model.ln_final(model.transformer(x[None], attn_mask=mask))[0]
        features.append(x[starts + own - 1] @ model.text_projection)
        first = last
    return F.normalize(torch.cat(features), dim=-1)


def text_choices(rounds):
    """What might make the text tower cheaper, each against encode_text as it is."""
    for dataset, n in (("iwildcam", 182), ("imagenet", 250)):
        prompts, model = prompts_of(dataset, n), new_model()
        both = torch.cat([texts.tokens for texts in prompts])

        def as_it_is(prompts=prompts, model=model):
            for texts in prompts:
                encode_text(model, texts.tokens).sum().backward()

        def one_pass(both=both, model=model):
            encode_text(model, both).sum().backward()

        def no_padding(prompts=prompts, model=model):
            for texts in prompts:
                packed(model, texts.tokens).sum().backward()

        def checkpointed(prompts=prompts, model=model):
            model.transformer.grad_checkpointing = True
            as_it_is(prompts, model)
            model.transformer.grad_checkpointing = False

        def bf16(prompts=prompts, model=model):
            with torch.autocast(DEVICE.type, torch.bfloat16):
                as_it_is(prompts, model)

        runs = dict(as_it_is=as_it_is, one_pass=one_pass, no_padding=no_padding)
        s = fastest(rounds, **runs, checkpointed=checkpointed, bf16=bf16)
        for name, what in (
            ("one_pass", "both heads' texts in one pass"),
            ("no_padding", "packed without padding, block-diagonal mask"),
            ("checkpointed", "checkpointing of the text tower alone"),
            ("bf16", "the text tower in bf16"),
        ):
            said = f"{s[name]:.2f} s against {s['as_it_is']:.2f} s, forward and backward; {n} classes"
            yield f"text, {dataset}: {what}", s[name] / s["as_it_is"], said


def photos(rounds):
    """Large JPEGs through the loader as it is, in Pillow's draft mode, against whole pictures."""
    model, g = new_model(), torch.Generator().manual_seed(0)
    std = sum(open_clip.get_model_preprocess_cfg(model)["std"]) / 3
    for width, height in ((640, 480), (2048, 1536), (4000, 3000)):
        with tempfile.TemporaryDirectory() as folder:
            noise = torch.randint(256, (height // 16, width // 16, 3), dtype=torch.uint8, generator=g)
            path = f"{folder}/a.jpg"
            Image.fromarray(noise.numpy()).resize((width, height), Image.BICUBIC).save(path, quality=90)
            split = drm_min.Split(ImageFiles([path] * 8, workers=0), torch.zeros(8, dtype=torch.int64))
            read = {}

            def draft(split=split, read=read):
                [(_, read["draft"])] = image_batches(model, split, [torch.arange(8)])

            def whole(split=split, read=read):
                with patch.object(JpegImageFile, "draft", lambda *_: None):
                    [(_, read["whole"])] = image_batches(model, split, [torch.arange(8)])

            s = fastest(rounds, draft=draft, whole=whole)
            changed = (read["draft"].float() - read["whole"].float()).abs().mean().item() / 255 / std
            said = f"{1000 * s['draft'] / 8:.1f} ms an image against {1000 * s['whole'] / 8:.1f} whole"
            said += f"; a pixel changes by {changed:.4f} standard deviations"
            yield f"photo of {width} x {height}", s["draft"] / s["whole"], said


def two_heads_vs_two_passes(rounds):
    prompts, model = prompts_of("toy"), new_model().eval()
    split = drm_min.Split(*a_batch(8, 256))

    @torch.no_grad()
    def two_passes():
        for texts in prompts:
            head, scale = drm_min.build_head(model, texts), drm_min.logit_scale(model)
            for images in split.images.split(128):
                (scale * drm_min.image_features(model, prepared(model, images)) @ head.T).softmax(1)

    s = fastest(rounds, one=lambda: drm_min.predict(model, split, prompts), two=two_passes)
    said = f"256 images: {s['one']:.2f} s against {s['two']:.2f} s"
    yield "two_heads_vs_two_passes", s["one"] / s["two"], said


def text_trimmed_vs_full(rounds):
    for dataset, n in (("toy", 8), ("fmow", 8), ("imagenet", 50)):
        prompts, model = prompts_of(dataset, n), new_model()

        def trimmed(prompts=prompts, model=model):
            for texts in prompts:
                encode_text(model, texts.tokens).sum().backward()

        def full(prompts=prompts, model=model):
            for texts in prompts:
                model.encode_text(texts.tokens, normalize=True).sum().backward()

        s = fastest(rounds, trimmed=trimmed, full=full)
        name = "text_trimmed_vs_full" + (f", {dataset}" if dataset != "toy" else "")
        said = f"forward and backward: {s['trimmed']:.2f} s against {s['full']:.2f} s"
        yield name, s["trimmed"] / s["full"], f"both heads' texts of {n} classes, {said}"


def use_model(name):
    MODEL[0] = name


def peak_of(what, *args):
    """Peak memory (bytes) of a process of its own that does nothing else; on a GPU that of the GPU."""
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
    with multiprocessing.get_context("spawn").Pool(1, use_model, [MODEL[0]]) as pool:
        return pool.apply(what, args)


def peak():
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated()
    if os.path.exists("/proc/self/status"):  # getrusage also counts the parent
        return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def peak_of_training(job):
    [step] = our_steps(new_model(), prompts_of("toy"), job)
    fastest(3, step=step)
    return peak()


def peak_of_core_targets(estimator):
    n, classes, size = 1_280_000, 1000, 512  # ImageNet
    g = torch.Generator().manual_seed(0)
    features = torch.empty(n, size, dtype=torch.float16, device=DEVICE)
    for part in torch.arange(n).split(100_000):
        some = F.normalize(torch.randn(len(part), size, generator=g), dim=1)
        features[part] = some.half().to(DEVICE)
    head = F.normalize(torch.randn(classes, size, generator=g), dim=1).to(DEVICE)
    labels, scale = torch.arange(n, device=DEVICE) % classes, torch.tensor(100.0, device=DEVICE)
    before, start = peak(), clock()
    targets = drm_min.core_targets(estimator, features, labels, head, scale)
    ready = clock() - start
    for batch in torch.randperm(n, generator=g)[:51_200].split(512):
        assert targets(batch).shape == (512, classes)
    return before, peak(), ready, (clock() - start - ready) / 100


def memory(rounds):
    erm, drm = peak_of(peak_of_training, ERM), peak_of(peak_of_training, DRM)
    peaks = f"DRM {drm / 2**30:.2f} GiB, ERM {erm / 2**30:.2f} GiB"
    yield "memory_drm_vs_erm", drm / erm, f"peak of a process that trains: {peaks}; 8 classes (toy), batch 32"
    features, table = 1_280_000 * 512 * 2, 1_280_000 * 1000 * 4  # bytes
    for estimator in ("softmax", "label", "posterior"):
        before, after, ready, of_batch = peak_of(peak_of_core_targets, estimator)
        beside = f"{(after - before) / 2**30:.2f} GiB beside the features' {features / 2**30:.2f}"
        times = f"ready in {ready:.0f} s, then {1000 * of_batch:.1f} ms a batch of 512"
        said = f"{beside}, where N x C would take {table / 2**30:.2f}; {times}"
        yield f"core targets of ImageNet's size, {estimator}", (after - before) / table, said


def sizes(rounds):
    """Disk and memory of the recipes' models, from shapes; the bytes of an activation were fitted once.

    OpenAI's weights run with QuickGELU, which keeps 8 bytes more than GELU (44; 80 and 16 in float32).
    """
    gigabyte = 1e9
    texts = sum(map(tokens_of, prompts_of("imagenet")))
    for name in ("ViT-B-16", "ViT-L-14", "ViT-L-14-336"):
        model = open_clip.create_model(name, device="meta")
        weights = sum(p.numel() for p in model.parameters())
        config = open_clip.get_model_config(name)
        vision, text = config["vision_cfg"], config["text_cfg"]
        tokens = (vision["image_size"] // vision["patch_size"]) ** 2 + 1
        units, layers = 256 * tokens * vision["width"], vision["layers"]
        bytes_of_unit = (52 * layers, 96 * layers, 2 * layers + 74, 4 * layers + 136)
        kept = [units * per / gigabyte for per in bytes_of_unit]
        copies = 4 * weights / gigabyte  # float32
        said = f"a model {copies:.2f} GB on disk, a checkpoint {4 * copies:.1f} (four copies); memory without"
        said += f" activations {5 * copies:.1f} GB (five copies); activations of 256 images in bf16"
        said += f" {kept[0]:.0f} GB, in fp32 {kept[1]:.0f}, checkpointed {kept[2]:.1f}, {kept[3]:.1f}"
        of_a_token = text["width"] * text["layers"] * 52 / gigabyte
        said += f"; of imagenet's {texts} tokens of text {texts * of_a_token:.0f} GB in bf16"
        yield f"{name}, {weights / 1e6:.0f} M weights", None, said
        for dataset in ("cifar10", "waterbirds", *RECIPES) if name == "ViT-B-16" else ():
            size = RECIPES.get(dataset, 256)
            own = sum(map(tokens_of, prompts_of(dataset)))
            parts = 5 * copies, size / 256 * kept[0], own * of_a_token
            said = "{:.0f} GB without activations, {:.0f} of {} images, {:.1f} of {} tokens of text, in bf16"
            said = said.format(*parts[:2], size, parts[2], own)
            yield f"{name}, {dataset}: {sum(parts):.0f} GB", None, said


def loader(rounds):
    model, n = new_model(), 256
    with tempfile.TemporaryDirectory() as folder:
        g = torch.Generator().manual_seed(0)
        noise = torch.randint(256, (n, 3, 24, 32), dtype=torch.uint8, generator=g)
        paths = [f"{folder}/{i}.jpg" for i in range(n)]
        for path, pixels in zip(paths, noise):  # as large as ImageNet's, and as many bytes
            image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            image.resize((500, 375), Image.BICUBIC).save(path, quality=90)

        def read(workers):
            split = drm_min.Split(ImageFiles(paths, workers=workers), torch.zeros(n, dtype=torch.int64))
            for _ in image_batches(model, split, torch.arange(n).split(32), 0):
                pass

        [step] = our_steps(model, prompts_of("toy"), DRM)
        takes = fastest(rounds, step=step)["step"]
        for workers in (0, 1, 2, 4, 8)[: 4 if (os.cpu_count() or 1) < 8 else 5]:
            rate = n / fastest(rounds, read=lambda workers=workers: read(workers))["read"]
            waits = "wait" if rate < 32 / takes else "not wait"
            said = f"{rate:.0f}; a step here takes {32 / takes:.1f}, so training would {waits}"
            yield f"images a second, {workers} workers", None, said


def choices(rounds):
    """What might pay, each against what drm_min does."""
    model = new_model()
    x = prepared(model, a_batch(8, 32)[0])
    plain, fused = (torch.optim.AdamW(model.parameters(), lr=1e-5, **how) for how in ({}, {"fused": True}))
    channels_last, compiled = new_model().to(memory_format=torch.channels_last), new_model()
    compiled.visual = torch.compile(compiled.visual)

    def towards(tower, pictures):
        def run():
            with autocast():
                features = tower.encode_image(pictures, normalize=True)
            features.float().sum().backward()

        return run

    last = towards(channels_last, x.contiguous(memory_format=torch.channels_last))
    s = fastest(rounds, plain=towards(model, x), last=last, compiled=towards(compiled, x))
    said = f"image tower, forward and backward: {s['last']:.2f} s against {s['plain']:.2f} s"
    yield "channels_last", s["last"] / s["plain"], said
    said = f"image tower compiled: {s['compiled']:.2f} s against {s['plain']:.2f} s"
    yield "compile", s["compiled"] / s["plain"], said
    s = fastest(rounds, plain=plain.step, fused=fused.step)
    size = f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f} M weights"
    said = f"AdamW on {size}: {s['fused']:.3f} s against {s['plain']:.3f} s"
    yield "fused_adamw", s["fused"] / s["plain"], said


def toy_job(rounds):
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        command = [sys.executable, str(ROOT / "drm_min.py"), "--out", folder]
        subprocess.run(command, check=True, capture_output=True)
        yield "toy job", None, f"{time.perf_counter() - start:.1f} s with imports, all of `python drm_min.py`"


PARTS = (
    *(drm_vs, split_of_a_step, classes, recipes, two_heads_vs_two_passes, text_trimmed_vs_full),
    *(text_choices, memory, sizes, loader, photos, choices, toy_job),
)


def main(argv=None):
    names = ", ".join(part.__name__ for part in PARTS)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="PART", help=f"parts whose names begin so: {names}")
    parser.add_argument("--json", metavar="FILE", help='write {"name": {"ratio": ...}} too')
    parser.add_argument("--model", default=MODEL[0], help="open_clip's name of a ViT [default: %(default)s]")
    parser.add_argument("--rounds", type=int, default=2, metavar="N", help="turns that count [default: 2]")
    args = parser.parse_args(argv)
    use_model(args.model)
    wanted = tuple(args.only or [""])
    parts = [part for part in PARTS if part.__name__.startswith(wanted)]
    if not parts:
        parser.error(f"--only {' '.join(args.only)}: unknown; allowed: {names}")
    cpu = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else cpu
    versions = f"torch {torch.__version__}, open_clip {open_clip.__version__}"
    print(f"{device}; {versions}; Python {platform.python_version()}\n", flush=True)
    print(f"| {'name':45} | ratio | measured |\n|{'-' * 47}|-------|----------|", flush=True)
    ratios = {}
    for part in parts:
        try:
            for name, ratio, measured in part(args.rounds):
                shown = "" if ratio is None else f"{ratio:.2f}"
                print(f"| {name:45} | {shown:5} | {measured} |", flush=True)
                if ratio is not None:
                    ratios[name] = dict(ratio=round(ratio, 4), measured=measured)
        except Exception as e:  # too little memory, no compiler: the other parts still tell theirs
            said = " ".join(f"{type(e).__name__}: {e}".split())[:300]
            print(f"| {part.__name__:45} |       | failed: {said} |", flush=True)
    if args.json:
        write_json(args.json, ratios)


if __name__ == "__main__":
    main()
