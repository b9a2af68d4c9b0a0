"""One training on disk and screen: saving, resuming, signals, the best epoch, history, the progress bar."""

import contextlib
import csv
import hashlib
import math
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import open_clip
import torch
from safetensors.torch import load_file
from tqdm import tqdm

from support.errors import BadInput, Stopped, find, log, out_of_memory, read_json, write, write_json
from support.weights import save_clip

COLUMNS = ("step", "epoch", "loss", "erm_loss", "wrm_loss", "lr", "seconds", "validation")  # of history.csv
LONG = 120  # seconds: a training that takes longer says early how long
READ_OF_ERM = ("erm-mixed", "ensemble")  # methods without a training of their own: they read erm's
# What decides a training, beside its method, lambda, seed and prompts.
RECIPE = "dataset model pretrained epochs batch_size accumulate lr warmup weight_decay select".split()
RECIPE += "loss precision skip_bad_images".split()


def about_job(job):
    """A training in the words of results.json; lam is None for WRM alone, the limit of large lambdas."""
    lam = None if job.method == "wrm" else job.lam
    return {"method": job.method, "seed": job.seed, "lam": lam, "estimator": job.estimator}


def about_training(job, setup):
    """The content of drm.json: what was trained, how, and with which prompts it is used."""
    config, about = setup.config, about_job(job)
    recipe = {key: getattr(config, key) for key in RECIPE}
    recipe["beta"] = job.beta if config.select == "best" else None  # it chooses the epoch, and no weight else
    recipe |= {"lam": str(about["lam"]), "seed": job.seed, "core_targets": job.estimator}
    recipe["training_images"] = len(setup.data.train)
    recipe["training_data"] = digest_of(setup.data.train, config.data_root)
    chosen_by = digest_of(setup.data.val, config.data_root) if config.select == "best" else None
    zero_shot = hashlib.sha256()  # a file of weights may have been replaced too
    for value in setup.zero_shot.state_dict().values():
        zero_shot.update(value.cpu().numpy().tobytes())
    recipe |= {"validation_data": chosen_by, "zero_shot_model": zero_shot.hexdigest()}
    versions = {"torch": torch.__version__, "open_clip": open_clip.__version__}
    about |= {"beta": job.beta, "dataset": config.dataset, "prompts": setup.texts}
    about |= {"concept_template": config.concept_template, "classes": setup.data.classes}
    return about | {"recipe": recipe, "versions": versions}


def fingerprint(parts):
    """Of tensors, and of what else can be written down."""
    made = hashlib.sha256()
    for part in parts:
        made.update(part.numpy().tobytes() if torch.is_tensor(part) else repr(part).encode())
    return made.hexdigest()


def digest_of(split, root):
    """A fingerprint of labels, and of pixels in memory or paths below the data root. No file is read."""
    if torch.is_tensor(split.images):
        return fingerprint([split.labels, split.images])
    base = str(Path(root) if Path(root).is_dir() else Path(root).parent)  # of a CSV file: its folder
    return fingerprint([split.labels, *(path.removeprefix(base) for path in split.images.paths)])


def digest_of_evaluation(setup, betas):
    """A fingerprint of all that rows depend on, beside the trained model: data, options, versions, CLIP."""
    config, data = setup.config, setup.data
    parts = [betas, config.alpha, data.metrics, data.group_weights, torch.__version__, open_clip.__version__]
    for name, split in {"": data.val, **data.tests}.items():
        parts += [name, digest_of(split, config.data_root), split.label_of_class, *split.groups.values()]
        parts += [[*split.groups], getattr(split.images, "border", 0)]
        if not torch.is_tensor(split.images):
            states = [os.stat(path) for path in split.images.paths if os.path.isfile(path)]
            parts += [(state.st_size, state.st_mtime_ns) for state in states]
    parts += [(value.device, value.float().sum().item()) for value in setup.zero_shot.state_dict().values()]
    return fingerprint(parts)


def model_folder(out, method, lam, seed, estimator, **_):
    """The folder of a training."""
    with_lambda = f"-lambda-{lam:g}" if method in ("drm", "dual") else ""
    with_targets = f"-{estimator}" if method in ("drm", "wrm") else ""
    return Path(out) / f"{method}{with_lambda}{with_targets}-seed-{seed}"


def read_saved(model, methods):
    """The drm.json of a model that is to be evaluated. Raises BadInput where a run did not write it."""
    saved = read_json(find(model.removeprefix("local-dir:")) / "drm.json")
    numbers = [(saved.get("beta"), 1), (saved.get("lam") or 0, 1e6), (saved.get("seed"), 2**31)]
    trained = [method for method in methods if method not in ("zero-shot", *READ_OF_ERM)]
    good = saved.get("method") in trained and type(saved.get("seed")) is int
    good = good and isinstance(saved.get("estimator"), (str, type(None)))
    good = good and (saved.get("lam") is not None or saved["method"] == "wrm")
    good = good and all(type(value) in (int, float) and 0 <= value <= high for value, high in numbers)
    for head in ("default", "concept"):
        texts_of = saved["prompts"].get(head) if isinstance(saved.get("prompts"), dict) else None
        for texts in texts_of.values() if isinstance(texts_of, dict) else [None]:
            good = good and isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts)
    if not good:
        raise BadInput(f"--eval-only --model {model}: its drm.json is not one that a run wrote")
    return saved


class Checkpoints:
    """The checkpoints of one training: folder/step-N while it runs, one at a time, folder/model at its end.

    Each is an open_clip folder with history.csv and `about`, of about_training, as drm.json in it. With
    --resume, load() goes on from what is there. Without `out`, or with --save-every -1, nothing is kept.
    What is not finite is refused (BadInput). Without `about` there is no progress bar.
    """

    def __init__(self, config, about=None, tokenizer=None, out=None):
        self.config, self.about, self.tokenizer = config, about, tokenizer
        self.folder = model_folder(out, **about) if out and config.save_every >= 0 else None
        self.name = about and str(model_folder("", **about))
        self.history = []  # a row a step, with the columns above
        self.best = {}  # score, epoch and weights of the best epoch, once there is one
        self.last = None  # the last good checkpoint
        self.finished = False
        self.stop = False

    def steps(self):
        found = [p for p in self.folder.glob("step-*") if p.name[5:].isdecimal()]
        return sorted(found, key=lambda p: int(p.name[5:]))

    def load(self, model, optimizer, scaler):
        """-> the number of steps that were taken before, with everything put back in its place."""
        if not self.config.resume or self.folder is None:
            return 0
        # steps first: finish() removes them, so that beside a finished model they are of a run begun after it
        candidates = [*reversed(self.steps()), self.folder / "model", self.folder / "model.old"]
        self.last = next((p for p in candidates if p.is_dir()), None)
        if self.last is None:
            return 0
        saved = read_json(self.last / "drm.json")
        recipe = saved.get("recipe") if isinstance(saved.get("recipe"), dict) else {}
        changed = [key for key, value in self.about["recipe"].items() if recipe.get(key) != value]
        if changed or saved.get("prompts") != self.about["prompts"]:
            other = f"was trained with another {', '.join(changed) or 'set of prompts'}"
            raise BadInput(f"--resume: {self.last} {other}; allowed: the same, or another --out")
        try:
            self.load_from(self.last, model, optimizer, scaler)
        except Exception as e:  # a damaged file makes its readers stumble in many ways
            if out_of_memory(e):
                raise
            what = f"{self.last} is damaged ({str(e)[:200]}); remove it to start anew"
            raise BadInput(f"--resume: {what}") from None
        log(f"{self.last}: " + ("finished before" if self.finished else f"on after step {len(self.history)}"))
        return len(self.history)

    def load_from(self, folder, model, optimizer, scaler):
        """Raises ValueError where what is there does not fit together, and whatever damaged files do."""
        self.finished = folder.name.startswith("model")
        self.history = read_history(folder / "history.csv")
        device = str(next(model.parameters()).device)
        model.load_state_dict(load_file(folder / "open_clip_model.safetensors", device=device))
        if self.finished:
            return
        progress = torch.load(folder / "progress.pt", map_location="cpu", weights_only=True)
        optimizer.load_state_dict(optimizer.state_dict() | {"state": progress["optimizer"]})
        scaler.load_state_dict(progress["scaler"])
        if best := progress["best"]:
            self.best = best | {"score": float(best["score"]), "epoch": int(best["epoch"])}
        if not optimizer.state:
            raise ValueError("its optimizer has taken no step")
        for p, of_p in optimizer.state.items():
            if not p.shape == of_p["exp_avg"].shape == of_p["exp_avg_sq"].shape or "step" not in of_p:
                raise ValueError("its optimizer belongs to another model")
        if folder.name != f"step-{len(self.history)}":
            raise ValueError("its history is not that of its steps")
        if self.best and shapes(self.best["state"]) != shapes(model.state_dict()):
            raise ValueError("its best weights belong to another model")

    @contextlib.contextmanager
    def watching(self, model, steps):
        """Within it a progress bar is shown, and SIGINT and SIGTERM wait for the end of the step."""
        # CoCa's text decoder, which no loss here reaches, may hold whatever the memory held
        self.sound = [p for p in model.parameters() if p.isfinite().all()]
        self.first, self.of, self.start = len(self.history), steps, time.perf_counter()
        before = self.history[-1]["seconds"] if self.history else 0.0
        self.clock = lambda: before + time.perf_counter() - self.start
        handlers = {}
        if self.folder and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handlers[number] = signal.signal(number, self.ask_to_stop)
        about = {"desc": self.name, "total": steps, "initial": self.first, "unit": "step", "mininterval": 0.5}
        self.bar = tqdm(disable=self.name is None, **about)
        try:
            with self.bar:
                yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def ask_to_stop(self, number, frame):
        with contextlib.suppress(OSError):  # print() would fail within a print() that the signal interrupts
            os.write(2, b"" if self.stop else b"\nstopping after this step\n")
        self.stop = True

    def check(self, losses):
        """Before the step is taken. Raises BadInput where a loss is not finite."""
        if not math.isfinite(losses[0]):
            self.refuse(f"the loss of step {len(self.history) + 1} is {losses[0]}")

    def refuse(self, what):
        last = f"; the last good checkpoint is {self.last}" if self.last else ""
        raise BadInput(f"--lr {self.config.lr}: {what}; allowed: a rate at which it stays finite{last}")

    def seconds(self):
        """Of the whole training, also where it was interrupted."""
        return round(self.history[-1]["seconds"], 1)

    def after_step(self, model, optimizer, scaler, losses, score=None):
        """Note a step and the score at its epoch's end, and save if it is time. Raises Stopped, BadInput."""
        epoch = len(self.history) // (self.of // self.config.epochs) + 1
        step, lr = len(self.history) + 1, optimizer.param_groups[0]["lr"]
        self.history.append(dict(zip(COLUMNS, (step, epoch, *losses, lr, self.clock(), score))))
        self.show_progress()
        if score is not None:
            self.offer_best(model, score, epoch)
        if self.folder and (self.stop or self.config.save_every and step % self.config.save_every == 0):
            if not all(p.isfinite().all() for p in self.sound):
                self.refuse(f"the weights after step {step} are not finite")
            self.save(model, optimizer, scaler)
        if self.stop:
            raise Stopped(f"stopped after step {step} of {self.of}; to go on, say the same with --resume")

    def show_progress(self):
        row, taken = self.history[-1], len(self.history) - self.first
        recent = [r["loss"] for r in self.history[-20:]]
        rate = taken * self.config.batch_size / (time.perf_counter() - self.start)
        shown = f"loss {sum(recent) / len(recent):.3f}, lr {row['lr']:.1e}, {rate:.0f} images/s"
        self.bar.set_postfix_str(shown, refresh=False)
        self.bar.update()
        if taken == 10 and self.name:
            left = (self.of - len(self.history)) * self.config.batch_size / rate
            if left > LONG:
                log(f"{self.name}: about {left / 60:.0f} minutes to go")

    def offer_best(self, model, score, epoch):
        if not self.best or score > self.best["score"]:
            state = {k: v.to("cpu", copy=True) for k, v in model.state_dict().items()}
            self.best = {"score": score, "epoch": epoch, "state": state}
        if self.name:
            best = f"best so far: epoch {self.best['epoch']}"
            log(f"{self.name}: epoch {epoch}, validation {score:.4f} ({best})")

    def finish(self, model, head):
        """Put the best weights back, if a score chose them, and keep the model. head() builds a head."""
        if self.best:
            model.load_state_dict(self.best["state"])
            if self.name:
                log(f"{self.name}: kept epoch {self.best['epoch']}, validation {self.best['score']:.4f}")
        # a last step may have spoilt what its loss did not show
        if not all(p.isfinite().all() for p in self.sound) or not head().isfinite().all():
            self.refuse(f"after {len(self.history)} steps the model is not finite")
        model.eval()
        if self.folder:
            self.last = self.folder / "model"
            write(self.last, lambda folder: self.save_model(folder, model))
            self.clear()

    def evaluated(self, setup, betas, rows_at):
        """The rows of a training, rows_at(alpha) for each alpha, or those kept if they depend on the same."""
        if self.folder:
            file, of = self.last / "evaluated.json", digest_of_evaluation(setup, betas)
            with contextlib.suppress(BadInput):  # not there, or damaged: it is made anew
                kept = read_json(file) if self.finished else {}
                if kept.get("of") == of:
                    return kept["rows"]
        rows = [row for alpha in self.config.alpha for row in rows_at(alpha)]
        if self.folder:
            write_json(file, {"of": of, "rows": rows})
        return rows

    def save(self, model, optimizer, scaler):
        state = optimizer.state_dict()["state"]
        progress = {"optimizer": state, "scaler": scaler.state_dict(), "best": self.best}

        def save_all(folder):
            self.save_model(folder, model)
            torch.save(progress, folder / "progress.pt")

        self.last = self.folder / f"step-{len(self.history)}"
        write(self.last, save_all)
        self.clear()

    def save_model(self, folder, model):
        save_clip(folder, model, self.tokenizer, self.about)
        with open(folder / "history.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.history)

    def clear(self):
        """Remove all steps but the last; renamed first, so that half a one is never a checkpoint."""
        for older in self.steps():
            if older != self.last:
                os.replace(older, older.with_name(older.name + ".old"))
        for leftover in self.folder.glob("step-*"):
            if leftover.stem[5:].isdecimal() and leftover.suffix in (".tmp", ".old"):
                shutil.rmtree(leftover, ignore_errors=True)


def shapes(state):
    return {name: value.shape for name, value in state.items()}


def read_history(path):
    """history.csv -> one dict a step. Raises OSError, and what else comes of a file that is none."""
    history = []
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            empty = {"validation": None} if row["validation"] == "" else {}
            values = {name: float(row[name]) for name in COLUMNS if name not in empty} | empty
            history.append(values | {"step": int(row["step"]), "epoch": int(row["epoch"])})
    if not history:
        raise ValueError(f"{path.name} has no rows")
    return history
