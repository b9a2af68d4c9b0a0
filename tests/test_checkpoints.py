"""Weights: models of every shape, runs that are interrupted and go on, and files that load strictly or not at all."""
import argparse
import copy
import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import describe
import drm_min
import files
from drm_min import BadInput, Config, load_clip, tokenize

CLASSES = ("cat", "dog", "owl")
VISION = dict(image_size=32, layers=1, width=32, head_width=16, patch_size=16)
TEXT = dict(context_length=77, vocab_size=49408, width=16, heads=2, layers=1)
VIT = dict(embed_dim=16, vision_cfg=VISION, text_cfg=TEXT)
SHAPES = {
    "vit": VIT,
    "dropped": VIT | dict(vision_cfg=VISION | dict(patch_dropout=0.5)),  # chance has a part in its training
    "resnet": VIT | dict(vision_cfg=dict(image_size=32, layers=[1, 1, 1, 1], width=8)),
    "siglip": dict(embed_dim=64, custom_text=True, init_logit_scale=math.log(10), init_logit_bias=-10,
                   vision_cfg=dict(image_size=32, timm_model_name="test_vit", timm_pool="map", timm_proj="none"),
                   text_cfg=TEXT | dict(context_length=16, no_causal_mask=True, proj_bias=True, pool_type="last")),
    "coca": VIT | dict(custom_text=True, vision_cfg=VISION | dict(attentional_pool=True, attn_pooler_heads=2, output_tokens=True),
                       text_cfg=TEXT | dict(context_length=76, embed_cls=True, output_tokens=True),
                       multimodal_cfg=TEXT | dict(context_length=76, attn_pooler_heads=2))}
DRM, LONG = "drm-lambda-1-seed-0", dict(method=("erm", "drm"), epochs=10, select="best")  # 20 steps a training


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in the processes that are killed: another number of threads rounds differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a random model of every shape, pictures of a `folder` data set, and two description files."""
    root, g = tmp_path_factory.mktemp("world"), torch.Generator().manual_seed(0)
    for shape, cfg in SHAPES.items():
        (root / shape).mkdir()
        prepare = dict(mean=[0.5] * 3, std=[0.5] * 3, interpolation="bilinear", resize_mode="squash") if shape == "siglip" else {}
        (root / shape / "open_clip_config.json").write_text(json.dumps(dict(model_cfg=cfg, preprocess_cfg=prepare)))
        torch.manual_seed(0)
        state = open_clip.create_model(f"local-dir:{root / shape}").state_dict()
        if shape == "coca":  # open_clip leaves it as the memory was; the loss does not reach it
            state["text_decoder.text_projection"].zero_()
        save_file(state, root / shape / "open_clip_model.safetensors")
    for split, n in (("train", 4), ("val", 2), ("sketch", 2)):
        for c, name in enumerate(CLASSES):
            (root / "data" / split / name).mkdir(parents=True)
            for i in range(n):
                picture = torch.randint(0, 150, (36, 40, 3), generator=g, dtype=torch.uint8)
                picture[..., c] += 100
                Image.fromarray(picture.numpy()).save(root / "data" / split / name / f"{i}.png")
    for file, say in (("looks.json", "{} with a tail"), ("other.json", "{} seen from afar")):
        (root / file).write_text(json.dumps({name: [say.format(name), f"what a {name}"] for name in CLASSES}))
    return root


def options(out, world, shape="vit", **more):
    return dict(dataset="folder", data_root=str(world / "data"), descriptions=str(world / "looks.json"), device="cpu", workers=0,
                model=f"local-dir:{world / shape}", template=("a drawing of a {}.",), method="drm", epochs=2, batch_size=6,
                lr=1e-3, warmup=0, select="last", save_every=0, out=str(out)) | more


def run(out, *args, **more):
    return drm_min.run(Config(**options(out, *args, **more)), out)


def argv(*args, **more):
    """The options as words of a command line."""
    return [word for name, value in options(*args, **more).items() for word in
            ("--" + name.replace("_", "-"), *map(str, value if isinstance(value, tuple) else [value]))]


def evaluation(world, folder, **more):
    where = dict(data_root=str(world / "data"), model=f"local-dir:{folder}")
    return Config(dataset="folder", device="cpu", workers=0, eval_only=True, **where | more)


def weights(folder):
    return load_file(folder / "open_clip_model.safetensors")


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def same(out, whole, training=DRM):
    """Two runs left one model, with the same weights, the loss of every step and all else that is written."""
    assert [p.name for p in (out / training).iterdir()] == ["model"]
    assert (out / training / "model" / "drm.json").read_text() == (whole / training / "model" / "drm.json").read_text()
    return equal(weights(out / training / "model"), weights(whole / training / "model"))


def close(a, b, atol):
    return all(torch.allclose(a[k], b[k], rtol=0, atol=atol) for k in a if a[k].is_floating_point())


def rows(report):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in report["results"]]


def stop_at(out, step, *args, by=signal.SIGTERM, **more):
    """A run to which a signal comes within the given step -> its exit code."""
    taken, take = [], torch.optim.AdamW.step

    def counted(self, *args, **kwargs):
        taken.append(1)
        if len(taken) == step:
            os.kill(os.getpid(), by)
        return take(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", counted)
        return drm_min.main(argv(out, *args, **more))


# -------------------------------------------------------------------------------------------------------- every shape

@pytest.mark.parametrize("loss", ["ce", "flyp"])
@pytest.mark.parametrize("shape", ["vit", "resnet", "siglip", "coca"])
def test_every_shape_goes_through_every_method_and_its_folder_gives_the_same_metrics(world, tmp_path, monkeypatch, shape, loss):
    seen, evaluate, methods = [], drm_min.evaluate, list(drm_min.METHODS)[1:]
    with monkeypatch.context() as patch:
        patch.setattr(drm_min, "evaluate", lambda m, *rest: seen.append(copy.deepcopy(m.state_dict())) or evaluate(m, *rest))
        results = run(tmp_path, world, shape, method=tuple(drm_min.METHODS), loss=loss, lam=3.0, alpha=(0.5, 1.0))["results"]
    assert [r["method"] for r in results] == ["zero-shot"] * 3 + [m for m in methods for _ in "ab"]
    assert all(list(r["domains"]) == ["val", "sketch"] and math.isfinite(r["summary"]["worst_log_loss"]) for r in results)
    start, ends = weights(world / shape), seen[2::2]
    assert equal(seen[0], start) and len(seen) == 11 and not any(close(start, end, 1e-5) for end in ends)
    assert all(close(half, {k: (start[k] + end[k]) / 2 for k in start}, 1e-6) for half, end in zip(seen[1::2], ends))

    folder = tmp_path / "drm-lambda-3-seed-0" / "model"
    loaded = open_clip.create_model(f"local-dir:{folder}", require_pretrained=True)
    assert equal(loaded.state_dict(), ends[methods.index("drm")]) and not equal(loaded.state_dict(), ends[methods.index("dual")])
    about = json.loads((folder / "drm.json").read_text())
    assert [about[k] for k in ("method", "lam", "beta", "seed", "dataset", "quick_gelu")] == ["drm", 3, 0.25, 0, "folder", False]
    assert about["prompts"] == dict(default={c: [f"a drawing of a {c}."] for c in CLASSES},
                                    concept={c: [f"{c} with a tail", f"what a {c}"] for c in CLASSES})
    assert (about["recipe"]["lr"], about["recipe"]["loss"], about["recipe"]["weight_decay"]) == (1e-3, loss, 0.2)
    assert about["versions"] == dict(torch=torch.__version__, open_clip=open_clip.__version__)
    [before] = [row for row in results if row["method"] == "drm" and row["alpha"] == 1]
    [again] = drm_min.run(evaluation(world, folder))["results"]
    assert all(again[k] == before[k] for k in ("method", "seed", "lam", "beta", "domains", "validation", "summary"))


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    return out, run(out, world, "dropped", **LONG)


def test_eval_only_listens_to_beta_and_refuses_what_is_not_the_models_own(world, finished, tmp_path):
    folder = finished[0] / DRM / "model"
    [own], [other] = (drm_min.run(evaluation(world, folder, **more))["results"] for more in ({}, dict(beta=0.9)))
    assert (own["beta"], other["beta"]) == (0.5, 0.9) and own["summary"]["worst_log_loss"] != other["summary"]["worst_log_loss"]
    for more in (dict(descriptions=str(world / "looks.json")), dict(template=("a {}.",))):
        with pytest.raises(BadInput, match=f"--eval-only --{next(iter(more))}"):
            evaluation(world, folder, **more)
    shutil.copytree(world / "data", tmp_path / "data")
    for split in ("train", "val", "sketch"):
        (tmp_path / "data" / split / "owl").rename(tmp_path / "data" / split / "yak")
    with pytest.raises(BadInput, match="other classes"):
        drm_min.run(evaluation(world, folder, data_root=str(tmp_path / "data")))
    with pytest.raises(BadInput, match="drm.json"):
        drm_min.run(evaluation(world, world / "vit"))


# ------------------------------------------------------------------------------------------------------- interruptions

KILLED = """
import json, os, pathlib, random, shutil, sys, torch, drm_min, files
chance = random.Random(0)
for argv, folder, events in json.loads(sys.argv[1]):
    for kill in range(6):
        at, when, count = kill < 5 and chance.randrange(2, events), chance.choice(("before", "amid", "after")), [0]
        child = os.fork()
        if not child:
            owners = dict(save_file=files, write_text=pathlib.Path, rmtree=shutil, replace=os, step=torch.optim.AdamW)
            for name, owner in owners.items():
                def event(*args, do=getattr(owner, name), name=name, **kwargs):
                    count[0] += 1
                    if count[0] == at and when == "amid" and name == "save_file":
                        args[1].write_bytes(b"half")
                    if count[0] != at or when == "after":
                        result = do(*args, **kwargs)
                    return os.kill(os.getpid(), 9) if count[0] == at else result
                setattr(owner, name, event)
            os.dup2(2, 1)
            os._exit(drm_min.main(argv + ["--resume"] * (kill > 0)))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(code, max([0] + [int(p.name[5:]) for p in pathlib.Path(folder).glob("step-*") if p.suffix == ""]), flush=True)
"""


def test_runs_killed_ten_times_at_random_have_the_weights_of_the_unbroken_ones(world, tmp_path):
    """Before, amid or after a step, a write, a rename or a removal; a run has more than five times `events` of them."""
    cases = {"last": (dict(epochs=10, core_targets="softmax", save_every=1), 40),
             "best": (dict(epochs=10, core_targets="softmax", save_every=2, select="best"), 24)}
    job = [(argv(tmp_path / case, world, "dropped", **more), str(tmp_path / case / DRM), n) for case, (more, n) in cases.items()]
    done = subprocess.run([sys.executable, "-c", KILLED, json.dumps(job)], cwd=describe.ROOT, capture_output=True,
                          text=True, env=os.environ | dict(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES=""))
    codes, steps = zip(*(map(int, line.split()) for line in done.stdout.splitlines()))
    assert codes == 2 * ((-signal.SIGKILL,) * 5 + (0,)), done.stderr
    for some in (steps[:5], steps[6:11]):
        assert list(some) == sorted(some) and some[-1] > 2, "no kill costs a checkpoint"
    for case, (more, _) in cases.items():
        run(tmp_path / "whole" / case, world, "dropped", **more)
        assert same(tmp_path / case, tmp_path / "whole" / case)


@pytest.mark.parametrize("by, step", [(signal.SIGINT, 33), (signal.SIGTERM, 7), (signal.SIGTERM, 40)])
def test_a_signal_saves_a_checkpoint_and_the_resumed_run_equals_the_unbroken_one(world, finished, tmp_path, capsys, by, step):
    """Steps 1 to 20 are erm's, 21 to 40 drm's: in the middle of an epoch, and in the very last step."""
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    assert stop_at(tmp_path, step, world, "dropped", by=by, **LONG) == 130
    assert "--resume" in next(line for line in capsys.readouterr().err.splitlines() if line.startswith("drm_min.py:"))
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    of, number = (DRM, step - 20) if step > 20 else ("erm-seed-0", step)
    assert [p.name for p in (tmp_path / of).iterdir()] == [f"step-{number}"]
    assert rows(run(tmp_path, world, "dropped", resume=True, **LONG)) == rows(finished[1])
    assert same(tmp_path, finished[0], "erm-seed-0") and same(tmp_path, finished[0])


def test_resuming_a_finished_run_trains_nothing(world, finished, monkeypatch):
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *args: pytest.fail("trained"))
    assert rows(run(finished[0], world, "dropped", resume=True, **LONG)) == rows(finished[1])


def test_a_stopped_run_goes_on_in_a_folder_where_another_had_finished(world, tmp_path):
    run(tmp_path, world, lr=5e-4)
    assert stop_at(tmp_path, 3, world) == 130
    run(tmp_path, world, resume=True)
    run(tmp_path / "whole", world)
    assert same(tmp_path, tmp_path / "whole")


def test_a_run_killed_while_it_clears_up_is_as_good_as_finished(world, tmp_path, monkeypatch):
    def killed(path, **_):
        part = next(Path(path).glob("drm.json"), None)
        if part and (tmp_path / DRM / "model").is_dir():
            part.unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        run(tmp_path, world, save_every=3)
    run(tmp_path, world, save_every=3, resume=True)
    run(tmp_path / "whole", world)
    assert equal(weights(tmp_path / DRM / "model"), weights(tmp_path / "whole" / DRM / "model"))


@pytest.fixture(scope="module")
def stopped(world, tmp_path_factory):
    """A run that was stopped in step 3 of 4, after the first epoch of 2."""
    out = tmp_path_factory.mktemp("stopped")
    assert stop_at(out, 3, world, select="best") == 130
    return out


@pytest.mark.parametrize("change, said", [
    (dict(lr=2e-3), "lr"), (dict(epochs=3, core_targets="label"), "epochs, core_targets"),
    (dict(template=("a {}.",)), "set of prompts"), (dict(descriptions="other.json"), "set of prompts")])
def test_resuming_another_training_is_refused_and_names_what_differs(world, stopped, monkeypatch, change, said):
    monkeypatch.chdir(world)
    with pytest.raises(BadInput, match=f"--resume: .*step-3 was trained with another {said};"):
        run(stopped, world, resume=True, select="best", **change)


@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "optimizer.safetensors", "best.safetensors", "drm.json"])
@pytest.mark.parametrize("missing", [False, True])
def test_a_damaged_checkpoint_is_refused(world, stopped, tmp_path, file, missing):
    shutil.copytree(stopped, tmp_path / "out")
    damaged = tmp_path / "out" / DRM / "step-3" / file
    damaged.unlink() if missing else damaged.write_bytes(damaged.read_bytes()[:-9])
    with pytest.raises(BadInput, match="step-3.*(damaged|cannot be read)"):
        run(tmp_path / "out", world, resume=True, select="best")


@pytest.mark.parametrize("fault", [OSError(28, "No space left"), SafetensorError("No space left (os error 28)")])
@pytest.mark.parametrize("call, last", [(3, 3), (4, 3), (5, 6)])  # step 6's model and its optimizer, and the finished model
def test_a_write_that_fails_costs_no_checkpoint(world, tmp_path, monkeypatch, fault, call, last):
    calls, save, more = [], files.save_file, dict(epochs=4, save_every=3)

    def full(tensors, path):
        save(tensors, path)
        calls.append(path)
        if len(calls) == call:
            path.write_bytes(path.read_bytes()[:1000])
            raise fault

    with monkeypatch.context() as patch, pytest.raises(BadInput, match=f"{tmp_path}.*No space left"):
        patch.setattr(files, "save_file", full)
        run(tmp_path, world, **more)
    assert [p.name for p in (tmp_path / DRM).iterdir() if p.suffix == ""] == [f"step-{last}"]
    run(tmp_path, world, resume=True, **more)
    run(tmp_path / "whole", world, **more)
    assert same(tmp_path, tmp_path / "whole")


def test_a_loss_that_is_not_finite_names_the_step_and_the_last_good_checkpoint(world, tmp_path):
    with pytest.raises(BadInput, match=r"--lr 1000000000.0: .*step \d+ .*last good checkpoint is .*step-\d+") as stop:
        run(tmp_path, world, lr=1e9, save_every=1, epochs=5)
    [left] = (tmp_path / DRM).iterdir()
    assert str(stop.value).endswith(str(left)) and all(v.isfinite().all() for v in load_file(left / "open_clip_model.safetensors").values())


def test_weights_that_are_not_finite_are_never_saved(world, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: self.param_groups[0]["params"][0].data.fill_(math.nan))
    with pytest.raises(BadInput, match="weights after step 1 are not finite"):
        run(tmp_path, world, save_every=1)
    assert not list(tmp_path.rglob("*.safetensors"))


# ------------------------------------------------------------------------------------------------------------- training

@pytest.mark.parametrize("n, more, said", [
    (0, {}, "0 training images"), (4, {}, "one class"), (12, dict(loss="flyp", batch_size=1), "--batch-size 1"),
    (12, dict(method="flyp", batch_size=1), "--batch-size 1"), (12, dict(skip_bad_images=True), "0 training images")])
def test_a_training_that_can_learn_nothing_is_refused_before_it_begins(world, tmp_path, monkeypatch, n, more, said):
    load = drm_min.load_data

    def few(config, seed):
        data = load(config, seed)
        data.train.images = [world / "looks.json"] * 12 if config.skip_bad_images else data.train.images  # none of them a picture
        return data._replace(train=data.train.take(torch.arange(n)))

    monkeypatch.setattr(drm_min, "load_data", few)
    monkeypatch.setattr(drm_min, "train", lambda *args: pytest.fail("training began"))
    with pytest.raises(BadInput, match=said):
        run(tmp_path, world, **more)


@pytest.mark.parametrize("saver", [dict(accumulate=2), dict(accumulate=3), dict(grad_checkpointing=True)])
@pytest.mark.parametrize("shape", ["vit", "siglip", "coca"])
def test_what_saves_memory_computes_more_and_gives_the_same_gradient(world, tmp_path, monkeypatch, shape, saver):
    """Seen by plain gradient descent: Adam would make rounding errors around 0 as large as any gradient."""
    work, norm, found = [], torch.nn.functional.layer_norm, []
    monkeypatch.setattr(torch.nn.functional, "layer_norm", lambda *args, **kwargs: work.append(1) or norm(*args, **kwargs))
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, lr, **_: torch.optim.SGD(groups, lr=lr))
    for more in ({}, saver):
        work.clear()
        run(tmp_path, world, shape, lr=0.1, epochs=1, **more)
        found.append((len(work), weights(tmp_path / DRM / "model")))
    (less, whole), (more, parts) = found
    assert more > less and close(whole, parts, 1e-5) and not close(whole, weights(world / shape), 1e-2)


@pytest.mark.parametrize("more", [dict(loss="flyp"), dict(method="flyp"), dict(shape="resnet")])
def test_parts_of_a_batch_are_refused_where_the_batch_counts_as_a_whole(world, tmp_path, more):
    with pytest.raises(BadInput, match=f"--accumulate 2: .*{'batch norm' if 'shape' in more else 'contrastive'}"):
        run(tmp_path, world, accumulate=2, **more)


# ----------------------------------------------------------------------------------------------------- files of weights

NAME = "drm-test-vit"


@pytest.fixture(autouse=True)
def name(monkeypatch):
    """open_clip knows the small ViT by name."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, NAME, VIT)


def quick(tower):
    return any(isinstance(m, open_clip.transformer.QuickGELU) for m in tower.modules())


def prefixed(state, prefix="module."):
    return {prefix + k: v for k, v in state.items()}


@pytest.mark.parametrize("form", [
    lambda s: s, lambda s: {"state_dict": s}, lambda s: {"epoch": 3, "model": s, "optimizer": {"lr": 1.0}}, prefixed, None,
    lambda s: prefixed(s, "model."), lambda s: {"state_dict": prefixed(s)}, lambda s: prefixed(s, "module.model.")])
def test_a_state_dict_in_any_wrapping_loads_whole_and_is_counted(world, tmp_path, capsys, form):
    state, file = weights(world / "vit"), tmp_path / ("w.pt" if form else "w.safetensors")
    torch.save(form(state), file) if form else save_file(state, file)
    model, _ = load_clip(NAME, str(file))
    assert equal(model.state_dict(), state) and f"all {len(state)} tensors" in capsys.readouterr().err and not quick(model)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("change", [{"ln_final.bias": None}, {"ln_final.bias": torch.ones(3)}, {"ln_final.more": torch.ones(3)}])
def test_a_key_less_or_more_is_refused_and_named(world, tmp_path, prefix, change):
    state = {k: v for k, v in (weights(world / "vit") | change).items() if v is not None}
    torch.save(prefixed(state, prefix), tmp_path / "w.pt")
    with pytest.raises(BadInput, match=next(iter(change))):
        load_clip(NAME, str(tmp_path / "w.pt"))


@pytest.mark.parametrize("kind", ["namespace", "module", "script", "trap", "bare trap", "nothing", "garbage"])
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_what_would_have_to_be_unpickled_is_refused_in_one_line_and_not_run(world, tmp_path, recwarn, kind):
    class Trap:
        def __reduce__(self):  # makes a file when it is loaded
            return open, (str(made), "w")

    file, made, state = tmp_path / "w.pt", tmp_path / "made", weights(world / "vit")
    if kind == "script":
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), file)
    elif kind in ("bare trap", "garbage"):
        file.write_bytes(pickle.dumps(Trap()) if kind == "bare trap" else b"x" * 99)
    else:
        torch.save(dict(namespace=dict(args=argparse.Namespace(lr=1), state_dict=state), module=torch.nn.Linear(2, 2),
                        trap=dict(state_dict=state, x=Trap()), nothing={})[kind], file)
    recwarn.clear()
    with pytest.raises(BadInput, match=f"--pretrained {file}: no .*state dict.*allowed"):
        load_clip(NAME, str(file))
    assert not made.exists() and not recwarn.list


def test_weights_of_openai_run_with_quickgelu_and_so_do_the_folders_they_become(world, tmp_path):
    numbers = dict(input_resolution=torch.tensor(32), context_length=torch.tensor(77), vocab_size=torch.tensor(49408))
    torch.save(weights(world / "vit") | numbers, tmp_path / "w.pt")
    run(tmp_path, world, model=NAME, pretrained=str(tmp_path / "w.pt"), epochs=1)
    folder = tmp_path / DRM / "model"
    for model in (load_clip(NAME, str(tmp_path / "w.pt"))[0], open_clip.create_model(f"local-dir:{folder}")):
        assert quick(model.visual) and quick(model.transformer)
    assert json.loads((folder / "drm.json").read_text())["quick_gelu"] is True


@pytest.mark.parametrize("other", [True, False])
def test_a_folder_with_another_activation_than_it_was_trained_with_is_refused(finished, tmp_path, other):
    folder = shutil.copytree(finished[0] / DRM / "model", tmp_path / "model")
    for file, value in (("open_clip_config.json", other), ("drm.json", not other)):
        content = json.loads((folder / file).read_text())
        content.get("model_cfg", content)["quick_gelu"] = value
        (folder / file).write_text(json.dumps(content))
    with pytest.raises(BadInput, match=f"trained {'without' if other else 'with'} QuickGELU"):
        load_clip(f"local-dir:{folder}")


# ----------------------------------------------------------------------------------------------------------- tokenizers

class Words:
    """In the manner of open_clip.HFTokenizer: a word is a token; when a text is cut, its end token stays."""

    def __init__(self, pad, end, last=()):
        self.context_length, self.pad, self.end, self.last = 16, pad, end, list(last)

    def __call__(self, texts, context_length=None):
        room = (context_length or self.context_length) - len(self.last)
        rows = [[3 + len(word) for word in text.split()][:room - 1] + [self.end] for text in texts]
        return torch.tensor([row + [self.pad] * (room - len(row)) + self.last for row in rows])


@pytest.mark.parametrize("tokenizer, words", [
    (open_clip.SimpleTokenizer(context_length=16), 14), (open_clip.SimpleTokenizer(), 75), (Words(0, 2), 15), (Words(1, 2), 15),
    (Words(1, 1), 15), (Words(0, 2, [101]), 14)],  # SigLIP pads with its end token; CLIPS puts a class token behind the padding
    ids=["clip-16", "clip", "pad-0", "pad-1", "siglip", "clips"])
def test_a_text_that_just_fits_is_read_and_one_word_more_is_refused(tokenizer, words):
    flat, length = ["cat " * words, "a", "dog"], tokenizer.context_length
    fits = tokenize(tokenizer, [flat[:2], flat[2:]])
    assert torch.equal(fits.tokens, tokenizer(flat)) and fits.tokens.shape == (3, length) and fits.owner.tolist() == [0, 0, 1]
    for more, n in ((1, length + 1), (5000, r"\d+")):
        with pytest.raises(BadInput, match=rf"looks.json: a text of {n} tokens, 'cat .*{length} at most"):
            tokenize(tokenizer, [["a"], ["cat " * (words + more)]], "looks.json")


# ---------------------------------------------------------------------------------------------- what an attacker brought up

@pytest.mark.skipif(not hasattr(os, "killpg"), reason="process groups are POSIX")
def test_a_signal_to_the_whole_group_spares_the_workers_and_saves(world, tmp_path):
    """As a batch system sends it; torch's workers would die of it and take the step along."""
    job = argv(tmp_path / "out", world, **dict(LONG, epochs=400, workers=2))
    process = subprocess.Popen([sys.executable, describe.ROOT / "drm_min.py", *job], start_new_session=True, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "epoch 3," in line:
            break
    os.killpg(process.pid, signal.SIGTERM)
    said = process.stderr.read()
    assert process.wait() == 130 and "--resume" in said and "Traceback" not in said
    assert [p.name[:5] for p in (tmp_path / "out" / "erm-seed-0").iterdir()] == ["step-"]


def test_folders_of_other_names_beside_the_checkpoints_are_left_alone(world, tmp_path):
    for name in ("step-old", "step-1.bak", "step-2.tmp"):
        (tmp_path / DRM / name).mkdir(parents=True)
    run(tmp_path, world)
    assert sorted(p.name for p in (tmp_path / DRM).iterdir()) == ["model", "step-1.bak", "step-old"]


def test_a_parameter_that_no_loss_reaches_and_was_never_finite_stops_nothing(world, tmp_path):
    shutil.copytree(world / "coca", tmp_path / "coca")
    state = weights(world / "coca")
    state["text_decoder.text_projection"].fill_(math.nan)
    save_file(state, tmp_path / "coca" / "open_clip_model.safetensors")
    [row] = run(tmp_path / "out", tmp_path, "coca", data_root=str(world / "data"), descriptions=str(world / "looks.json"))["results"]
    assert math.isfinite(row["summary"]["worst_log_loss"])


def test_a_last_step_that_spoils_the_model_costs_no_finished_one(world, tmp_path, monkeypatch):
    run(tmp_path, world)
    before = weights(tmp_path / DRM / "model")
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: [p.data.fill_(math.nan) for p in self.param_groups[0]["params"]])
    with pytest.raises(BadInput, match="after 1 steps the model is not finite"):
        run(tmp_path, world, epochs=1, batch_size=12)
    assert equal(before, weights(tmp_path / DRM / "model"))


@pytest.mark.parametrize("change", [
    dict(beta="x"), dict(beta=5), dict(lam="x"), dict(prompts=[]), dict(prompts=None), dict(prompts=dict(default=3, concept={})),
    dict(prompts=dict(default={c: "a text" for c in CLASSES}, concept={c: ["a"] for c in CLASSES})),
    dict(prompts=dict(default={c: [] for c in CLASSES}, concept={c: ["a"] for c in CLASSES})), dict(method=["drm"]), dict(method="zero-shot")])
def test_a_drm_json_that_no_run_wrote_is_refused(world, tmp_path, change):
    good = dict(method="drm", beta=0.5, lam=1.0, seed=0, prompts={head: {c: [c] for c in CLASSES} for head in ("default", "concept")})
    shutil.copytree(world / "vit", tmp_path / "m")
    (tmp_path / "m" / "drm.json").write_text(json.dumps(good))
    assert drm_min.run(evaluation(world, tmp_path / "m"))["results"][0]["beta"] == 0.5
    (tmp_path / "m" / "drm.json").write_text(json.dumps(good | change))
    with pytest.raises(BadInput, match="not one that a run wrote"):
        drm_min.run(evaluation(world, tmp_path / "m"))


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", '{"recipe": [], "prompts": 3}', ""])
def test_a_checkpoint_whose_drm_json_is_nonsense_is_refused(world, tmp_path, text):
    run(tmp_path, world)
    (tmp_path / DRM / "model" / "drm.json").write_text(text)
    with pytest.raises(BadInput, match="drm.json|another"):
        run(tmp_path, world, resume=True)


def test_evaluating_a_toy_model_again_draws_the_images_of_its_own_seed(tmp_path):
    config = dict(device="cpu", epochs=1, batch_size=2000, method="erm", seed=3, out=str(tmp_path))
    [trained] = drm_min.run(Config(**config), tmp_path)["results"]
    [again] = drm_min.run(Config(eval_only=True, device="cpu", model=f"local-dir:{tmp_path}/erm-seed-3/model"))["results"]
    assert trained["domains"] == again["domains"] and again["seed"] == 3


def test_a_file_where_a_model_will_go_is_said_before_training(world, tmp_path, monkeypatch):
    (tmp_path / DRM).write_text("mine")
    monkeypatch.setattr(drm_min, "train", lambda *args: pytest.fail("training began"))
    with pytest.raises(BadInput, match=f"{DRM}: cannot be written"):
        run(tmp_path, world)
    assert (tmp_path / DRM).read_text() == "mine"


def test_the_token_that_pads_is_counted_where_a_text_holds_it():
    """CLIP pads with 0, which is also the "!" within a word."""
    tokenizer = open_clip.SimpleTokenizer(context_length=16)
    assert tokenizer.encode("wow!~").count(0) == 1
    with pytest.raises(BadInput, match="17 tokens"):
        tokenize(tokenizer, [["a " * 12 + "wow!~"]])


@pytest.mark.parametrize("state", [b"", dict])
def test_an_empty_file_and_names_that_are_no_names_are_no_weights(tmp_path, state):
    file = tmp_path / "w.pt"
    file.write_bytes(b"") if state == b"" else torch.save({1: torch.ones(2)}, file)
    with pytest.raises(BadInput, match="no.* state dict"):
        files.read_weights(str(file))


def test_a_description_file_that_goes_away_in_training_costs_no_results(world, tmp_path, monkeypatch):
    looks, train = tmp_path / "looks.json", drm_min.train
    shutil.copy(world / "looks.json", looks)
    monkeypatch.setattr(drm_min, "train", lambda *args: (train(*args), looks.unlink()))
    assert len(run(tmp_path / "out", world, descriptions=str(looks))["about"]["prompts_sha256"]) == 64


def test_seconds_are_of_a_whole_training_or_of_none(world, tmp_path):
    assert run(tmp_path, world)["results"][0]["seconds"] > 0
    assert run(tmp_path, world, resume=True)["results"][0]["seconds"] is None
