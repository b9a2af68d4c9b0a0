"""What is refused and in which words, what is said to the reader, and writing that costs no existing file."""

import contextlib
import functools
import json
import math
import os
import shutil
import socket
import sys
import tempfile
from collections import Counter
from pathlib import Path

from open_clip.modified_resnet import ModifiedResNet
from safetensors import SafetensorError
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
LEFT = ("results.json", "predictions.csv", "*-seed-*/model*", "*-seed-*/step-*")  # by a run, in its --out


class BadInput(ValueError):
    """A fault of the input, in one line that names the thing, its value and what is allowed (exit code 2)."""

    def __str__(self):
        return printable(super().__str__())


class Stopped(Exception):
    """SIGINT or SIGTERM came, and a checkpoint was saved: the message says how to go on (exit code 130)."""


def guarded(program, to_go_on):
    """Around a program's main(): bad input, or Ctrl-C, ends in one line on stderr and an exit code."""

    def decorate(main):
        @functools.wraps(main)
        def with_exit_code(argv=None):
            try:
                if hasattr(sys.stdout, "reconfigure"):
                    sys.stdout.reconfigure(errors="replace")  # a terminal without ± shows a question mark
                return main(argv) or 0
            except BadInput as e:
                code, said = 2, str(e)
            except (Stopped, KeyboardInterrupt) as e:
                code, said = 130, str(e) or f"stopped; {to_go_on}"
            except (RuntimeError, MemoryError) as e:
                code, said = 2, f"--workers: {str(e)[:200]}; allowed: fewer, or 0, if memory is short"
                if out_of_memory(e):
                    said = f"out of memory ({str(e)[:200]}){getattr(e, 'advice', '')}"
                elif "DataLoader worker" not in str(e):  # torch raises it wherever the program is
                    raise
            print(f"{program}: {' '.join(said.split())}", file=sys.stderr)
            return code

        return with_exit_code

    return decorate


def out_of_memory(error):
    """Whether an exception is one of those that torch, its devices and Python raise where memory is short."""
    said = str(error).lower()
    words = ("out of memory", "allocate memory", "not enough memory", "alloc_failed")
    return isinstance(error, MemoryError) or any(word in said for word in words)


def printable(text):
    """Control characters, which would command a terminal, as their escapes."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def log(text):
    """A line for the reader, on standard error: standard output is for results."""
    tqdm.write(printable(text), file=sys.stderr)


def print_lines(*lines):
    """Results, on standard output. Raises BadInput where it cannot take them."""
    try:
        print(*map(printable, lines), sep="\n", flush=True)
    except OSError as e:
        raise BadInput(f"the standard output cannot be written ({e.strerror}); files are there") from None


def markdown(rows):
    """Rows of texts, the first of them the heading -> lines of a Markdown table, padded."""
    rows = [[" ".join(printable(cell).split()).replace("|", "\\|") for cell in row] for row in rows]
    columns = max(len(row) for row in rows)
    rows = [row + [""] * (columns - len(row)) for row in rows]
    width = [max(len(row[i]) for row in rows) for i in range(columns)]
    rows.insert(1, ["-" * max(3, w) for w in width])
    return ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, width)) + " |" for row in rows]


def first_of(names, n=5):
    """The first few of many names, and how many more there are."""
    names = [str(name) for name in names]
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")


def find(path):
    """A relative path is looked for here first, then in the repository, where shipped files are."""
    path = Path(path)
    return path if os.path.exists(path) or path.is_absolute() else ROOT / path


def twice(pairs):
    """The keys that come more than once in (key, value) pairs, and how often; a dict keeps the last."""
    return {key: times for key, times in Counter(key for key, _ in pairs).items() if times > 1}


def read_json(path):
    """A JSON file -> dict. Raises BadInput."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise BadInput(f"{path}: cannot be read as JSON ({e})") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path}: holds no object")
    return content


def write(path, save):
    """save(temporary path), then rename: a failed write costs nothing that is there. Raises BadInput."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    old = path.with_name(path.name + ".old")
    try:
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)
        save(temporary)
        os.umask(umask := os.umask(0o077))  # it can be asked for only by setting it
        for file in filter(Path.is_file, (temporary, *temporary.rglob("*"))):
            with contextlib.suppress(OSError):  # a disk may know no modes
                file.chmod(0o666 & ~umask)  # safetensors lets only their owner read its files
        if path.is_dir() and temporary.is_dir():  # one that is not empty cannot be replaced in one move
            os.replace(path, old)
        os.replace(temporary, path)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError, RuntimeError) as e:  # torch.save raises RuntimeError on a full disk
        if "DataLoader worker" in str(e) or isinstance(e, RuntimeError) and out_of_memory(e):
            raise  # a fault of no file: see guarded
        why = getattr(e, "strerror", None) or " ".join(str(e).split())[:200]
        raise BadInput(f"{path}: cannot be written ({why}); what was there before is still there") from None


def write_json(path, content, **options):
    text = json.dumps(content, indent=1, allow_nan=False, **options) + "\n"
    write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def make_folder(path, inner=None):
    """Make a folder and try it. Raises BadInput where it cannot be written, or `inner` in it is no folder."""
    try:
        if inner and not (Path(path) / inner).is_dir() and os.path.lexists(Path(path) / inner):
            raise BadInput(f"--out: {Path(path) / inner} cannot be written; allowed: a folder, or nothing")
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as e:
        allowed = "an existing folder or one that can be made"
        raise BadInput(f"--out {path}: cannot be written ({e.strerror}); allowed: {allowed}") from None


def is_over(owner):
    """Whether the process "number on host" is known to have ended; of Windows it is not asked, see locked."""
    pid, _, host = owner.partition(" on ")
    if host != socket.gethostname() or not pid.isdecimal():
        return False
    if os.name != "posix" or int(pid) == os.getpid():  # an earlier one had this number, as in containers
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):  # it is another user's, or none
        pass
    return False


@contextlib.contextmanager
def locked(out):
    """A file that names this process; all systems let only one make it. Raises BadInput for a second one."""
    path, owner = out / "lock", "?"
    try:
        if os.path.lexists(path):
            owner = path.read_text(encoding="utf-8", errors="replace")[:100]
            if is_over(owner):
                # Windows refuses it while the file is open there; elsewhere another run may have been faster
                ended = path.rename(out / f"lock.{os.getpid()}")
                ended.unlink() if is_over(ended.read_text(errors="replace")[:100]) else ended.rename(path)
        file = open(path, "xb", buffering=0)
    except OSError as e:
        if not os.path.lexists(path):
            raise BadInput(f"{path}: cannot be written ({e.strerror})") from None
        how = f"another --out, or when it has ended; {path} is to be removed if it was killed"
        raise BadInput(f"--out {out}: another run, process {owner}, writes there; allowed: {how}") from None
    try:
        with file:
            with contextlib.suppress(OSError):  # of a full disk; without the name it is a lock too
                file.write(f"{os.getpid()} on {socket.gethostname()}".encode())
            yield
    finally:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def own_folder(config):
    """--out, for as long as a run lasts: made, and removed where nothing came into it.

    Raises BadInput where it holds what an earlier run left, or where one is at work.
    """
    out = Path(config.out)
    new = [path for path in (out, *out.parents) if not os.path.lexists(path)]
    resumable = config.save_every >= 0 and not config.eval_only and not config.predict
    try:
        make_folder(out)
        left = [p for name in LEFT for p in out.glob(name)]
        if left and not config.resume and not config.overwrite:
            first = first_of(sorted(p.relative_to(out) for p in left), 3)
            go_on = "--resume, to go on from it; " if resumable else ""
            how = f"{go_on}--overwrite, to replace it; another --out"
            raise BadInput(f"--out {out}: an earlier run left {first}; allowed: {how}")
        with locked(out):
            yield out
    except KeyboardInterrupt:
        if resumable:
            raise
        raise Stopped("stopped; nothing is kept to go on from") from None
    except (RuntimeError, MemoryError) as e:
        saving = "" if config.grad_checkpointing else ", --grad-checkpointing"
        smaller = f"or a smaller --batch-size, now {config.batch_size}"
        e.advice = f"; to need less: --accumulate, now {config.accumulate}{saving}, {smaller}"
        raise
    finally:
        for path in new:
            with contextlib.suppress(OSError):  # it is not empty
                path.rmdir()


def check_learnable(split, config, model, jobs):
    """Before any step is taken. Raises BadInput where nothing can be learnt, or not as asked."""
    n, dataset = len(split), f"--dataset {config.dataset}"
    if not jobs:
        return
    if n == 0:
        raise BadInput(f"{dataset}: 0 training images, so no step is taken; allowed: 2 or more")
    if len(split.labels.unique()) == 1:
        raise BadInput(f"{dataset}: all {n} training images are of one class; allowed: 2 classes or more")
    if any(job.loss != "ce" for job in jobs) and min(config.batch_size, n) == 1:
        raise BadInput("--batch-size 1: a contrastive loss on one image is always 0; allowed: 2 or more")
    if config.accumulate > 1 and any(isinstance(module, _BatchNorm) for module in model.modules()):
        parts = f"--accumulate {config.accumulate}"
        raise BadInput(f"{parts}: this model has batch norms, for which parts are not the batch; allowed: 1")
    if config.grad_checkpointing and isinstance(model.visual, ModifiedResNet):
        log("--grad-checkpointing: open_clip's ResNets have none, so this saves the memory of texts only")
    if any(job.estimator == "oracle" for job in jobs) and split.oracle is None:
        known = f"{config.dataset} does not know p(y | x_c)"
        raise BadInput(f"--core-targets oracle: {known}; allowed: the other estimators")


def check_finite(domains):
    """Raises BadInput where a model's probabilities are not finite."""
    if not all(math.isfinite(metrics["log_loss"]) for metrics in domains.values() if metrics["n"]):
        raise BadInput("the model's probabilities are not finite; allowed: a smaller --lr")
