#!/usr/bin/env python3
"""What only a GPU can tell, in one command and one table, in under ten minutes: python tests/gpu.py

Images a second and the share of the card's peak for ViT-B/16 and ViT-L/14@336, memory, whether loading keeps
up, how often a step waits for the GPU, what precision, channels-last and torch.compile bring, whether a toy
run and a resumed one say what the CPU says. `--tests` also runs the tests that train, on the GPU. Without a
GPU it runs on the CPU at a small size, so that the script itself is tested; such numbers say nothing.
"""

import argparse
import contextlib
import copy
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import open_clip
import torch
from bench import (
    DEVICE,
    DRM,
    ERM,
    MODEL,
    ROOT,
    a_batch,
    autocast,
    fastest,
    flops,
    new_model,
    our_steps,
    prepared,
    prompts_of,
    tokens_of,
)
from PIL import Image

import drm_min
from support.images import ImageFiles, image_batches

CUDA = DEVICE.type == "cuda"
PEAKS = {"H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "A100": 312, "L40S": 362, "L40": 181}
PEAKS |= {"L4": 121, "4090": 165, "3090": 71, "V100": 125}


def peak_tflops():
    """The card's dense bf16 (V100: fp16) peak as its maker says, in TFLOP/s, or None for one not listed."""
    name = torch.cuda.get_device_name() if CUDA else ""
    return next((peak for card, peak in PEAKS.items() if card in name), None)


def training(_):
    """Whole steps of drm_min.train: images a second, share of the peak, memory."""
    large = {"grad_checkpointing": True, "accumulate": 4}
    sizes = {MODEL[0]: (256, {}), "ViT-L-14-336-quickgelu": (256, large)} if CUDA else {MODEL[0]: (8, {})}
    for name, (size, options) in sizes.items():
        MODEL[0], prompts = name, prompts_of("fmow" if CUDA else "toy")
        image, token = flops()
        erm, drm = our_steps(new_model(), prompts, ERM, DRM, size=size, **options)
        for job, step in ((ERM, erm), (DRM, drm)):
            if CUDA:
                torch.cuda.reset_peak_memory_stats()
            seconds = fastest(3, step=step)["step"]
            tokens = sum(tokens_of(getattr(prompts, head)) for head in job.heads)
            operations = (3 + bool(options)) * (size * image + tokens * token)  # 4: two forward passes
            said = f"{size / seconds:.1f} images/s, {operations / seconds / 1e12:.1f} TFLOP/s"
            if peak_tflops():
                said += f" ({operations / seconds / 1e10 / peak_tflops():.0f} % of the peak)"
            if CUDA:
                said += f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
            yield f"{name}, batch {size}, {job.method}", f"{seconds:.3f} s a step: {said}"


def waiting(_):
    """How often a training step makes the CPU wait for the GPU, in drm_min.train itself."""
    if not CUDA:
        yield "waits for the GPU a step", "none to count without CUDA"
        return
    prompts, (images, labels), counts = prompts_of("toy"), a_batch(8, 32), []
    model, split = new_model(), drm_min.Split(images, labels, crop=1.0)
    targets = torch.full((32, 8), 1 / 8, device=DEVICE)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for steps in (1, 11):
                config = drm_min.Config(epochs=steps, batch_size=32, lr=1e-5, weight_decay=0.2, select="last")
                before = len(caught)
                drm_min.train(model, split, prompts, targets.__getitem__, DRM, config)
                counts.append(sum("synchronizing" in str(w.message) for w in caught[before:]))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    yield "waits for the GPU a step", f"{(counts[1] - counts[0]) / 10:.1f}"


def loading(folder):
    """Whether JPEGs come as fast as the model takes them."""
    n, size = (16384, 256) if CUDA else (32, 8)
    g = torch.Generator().manual_seed(0)
    paths = [f"{folder}/{i}.jpg" for i in range(min(n, 256))]
    for path in paths:
        noise = torch.randint(256, (24, 32, 3), dtype=torch.uint8, generator=g)
        Image.fromarray(noise.numpy()).resize((500, 375), Image.BICUBIC).save(path, quality=90)
    paths = (paths * n)[:n]
    [step] = our_steps(new_model(), prompts_of("toy"), DRM, size=size)
    takes = size / fastest(3, step=step)["step"]
    for workers in (8, 16) if CUDA else (0, 2):
        split = drm_min.Split(ImageFiles(paths, workers=workers), torch.zeros(n, dtype=torch.int64))
        start = time.perf_counter()
        for _ in image_batches(new_model(), split, torch.arange(n).split(size), 0):
            pass
        rate = n / (time.perf_counter() - start)
        said = f"{rate:.0f} images/s of 500 x 375, starting included; training takes {takes:.0f}"
        yield f"loading, {workers} workers", said


def choices(_):
    """What might pay: each ratio is of the image tower's way forward and back, against as it is."""
    model, size = new_model(), 128 if CUDA else 4
    x = prepared(model, a_batch(8, size)[0])
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)

    def towards(tower, pictures=x, half=True):
        def run():
            with autocast() if half else contextlib.nullcontext():
                features = tower.encode_image(pictures, normalize=True)
            features.float().sum().backward()

        return run

    def float32(precision):
        def run():
            torch.set_float32_matmul_precision(precision)
            towards(model, half=False)()
            torch.set_float32_matmul_precision("high")

        return run

    s = fastest(
        3,
        plain=towards(model),
        last=towards(last, x.contiguous(memory_format=torch.channels_last)),
        highest=float32("highest"),
        high=float32("high"),
    )
    yield "channels-last", f"{s['last'] / s['plain']:.2f}"
    yield "bf16 against TF32", f"{s['plain'] / s['high']:.2f}"
    yield "TF32 against float32", f"{s['high'] / s['highest']:.2f}"
    compiled = copy.deepcopy(model)
    compiled.visual = torch.compile(compiled.visual)  # last: it wants a compiler
    s = fastest(3, plain=towards(model), compiled=towards(compiled))
    yield "torch.compile of the image tower", f"{s['compiled'] / s['plain']:.2f}"


def toy(folder):
    """A toy run here and one on the CPU: equal within noise."""
    epochs = 6 if CUDA else 1

    def run(name, device, *options):
        words = ["--method", "drm", "--device", device, "--epochs", str(epochs), "--out", f"{folder}/{name}"]
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            config = drm_min.command_line(
                drm_min.Config, [*words, *options], "drm_min.py", "", drm_min.toy.RECIPE
            )
            [row] = drm_min.run(config, Path(f"{folder}/{name}"))["results"]
        return row, time.perf_counter() - start

    here, seconds = run("here", DEVICE.type)
    on_cpu, _ = run("cpu", "cpu")
    for key in ("id_accuracy", "ood_mean_accuracy"):
        a, b = (100 * row["summary"][key] for row in (here, on_cpu))
        yield f"toy DRM, {key}", f"{a:.2f} % on {DEVICE.type}, {b:.2f} % on the CPU; {seconds:.0f} s"
    apart = abs(here["summary"]["ood_mean_accuracy"] - on_cpu["summary"]["ood_mean_accuracy"])
    assert apart < 0.03, f"{100 * apart:.1f} points apart, more than noise"


def resumed(folder):
    """A run that is killed after a checkpoint and goes on, beside one that is left alone."""
    options = ["--method", "drm", "--epochs", "1", "--save-every", "5"]
    found = {}
    for name in ("whole", "killed"):
        out = Path(folder) / name
        command = [sys.executable, str(ROOT / "drm_min.py"), *options, "--out", str(out)]
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        if name == "killed":
            process = subprocess.Popen(command, **silent)
            while process.poll() is None and not any(p.name[5:].isdecimal() for p in out.glob("*/step-*")):
                time.sleep(0.01)
            process.kill()
            process.wait()
            command.append("--resume")
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
        assert "--resume" not in command or "on after step" in said, "no checkpoint was found"
        [row] = json.loads((out / "results.json").read_text(encoding="utf-8"))["results"]
        found[name] = 100 * row["summary"]["ood_mean_accuracy"]
    yield "killed and resumed", f"OOD {found['killed']:.2f} %, left alone {found['whole']:.2f} %"


def tests(_):
    """The files of tests that run whole jobs, those on whatever device is there."""
    files = [
        str(ROOT / "tests" / name) for name in ("test_evaluation.py", "test_checkpoints.py", "test_job.py")
    ]
    command = [sys.executable, "-m", "pytest", "-q", "--device", DEVICE.type, *files]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    yield f"tests on {DEVICE.type}", " ".join(done.stdout.strip().splitlines()[-1:])


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tests", action="store_true", help="run the tests that train, too")
    args = parser.parse_args(argv)
    device = torch.cuda.get_device_name() if CUDA else f"the CPU, {torch.get_num_threads()} threads"
    print(f"{device}; torch {torch.__version__}, open_clip {open_clip.__version__}; {os.cpu_count()} cores\n")
    print("| what | measured |\n|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for part in (training, waiting, loading, choices, toy, resumed, *[tests] * args.tests):
            MODEL[0] = "ViT-B-16-quickgelu" if CUDA else "ViT-B-32-quickgelu"  # as OpenAI's weights want
            try:
                for name, measured in part(folder):
                    print(f"| {name} | {measured} |", flush=True)
            except Exception as e:  # the other parts still tell theirs
                said = " ".join(f"{type(e).__name__}: {e}".split())[:300]
                print(f"| {part.__name__} | failed: {said} |", flush=True)


if __name__ == "__main__":
    main()
