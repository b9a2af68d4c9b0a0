"""Trainings on disk: runs that are interrupted and go on, models that are saved and evaluated again."""

import copy
import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import open_clip
import pytest
import torch
from conftest import CLASSES, DRM, ROOT, argv, equal, evaluation, run, stop_at, weights
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import drm_min
from drm_min import Config
from support import checkpoints
from support.errors import BadInput

pytestmark = pytest.mark.usefixtures("one_thread")

LONG = dict(method=("erm", "drm"), epochs=10, select="best")  # 20 steps a training


def history(out, training=DRM, folder="model"):
    """history.csv as it is written: one dict of texts a step."""
    with open(out / training / folder / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


def column(rows, name):
    return [float(row[name]) if row[name] else None for row in rows]


def same(out, whole, training=DRM):
    """Two runs left one model: its weights, every step's numbers but the time, all else that is written."""
    assert sorted(p.name for p in (out / training).iterdir()) == ["model", "predictions.csv"]
    kept, other = (folder / training / "model" for folder in (out, whole))
    assert (kept / "drm.json").read_text() == (other / "drm.json").read_text()
    steps, others = history(out, training), history(whole, training)
    assert steps and [row | {"seconds": ""} for row in steps] == [row | {"seconds": ""} for row in others]
    return equal(weights(kept), weights(other))


def close(a, b, atol):
    return all(torch.allclose(a[k], b[k], rtol=0, atol=atol) for k in a if a[k].is_floating_point())


def rows(report):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in report["results"]]


# ------------------------------------------------------------------------------------- saving and eval-only


@pytest.mark.parametrize("loss", ["ce", "flyp"])
@pytest.mark.parametrize("shape", ["vit", "resnet", "siglip", "coca"])
def test_every_shape_goes_through_every_method_and_its_folder_gives_the_same_metrics(
    world, tmp_path, monkeypatch, shape, loss
):
    seen, predict_all = [], drm_min.predict_all
    readings, others = list(drm_min.OF_ERM), ["wrm", "drm", "dual", "flyp"]

    def noted(model, *rest):
        seen.append(copy.deepcopy(model.state_dict()))
        return predict_all(model, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(drm_min, "predict_all", noted)
        more = dict(method=drm_min.METHODS, loss=loss, lam=3.0, alpha=(0.5, 1.0))
        results = run(tmp_path, world, shape, **more)["results"]
    methods = ["zero-shot"] * 3 + readings * 2 + [method for method in others for _ in "ab"]
    assert [row["method"] for row in results] == methods and {*methods} == {*drm_min.METHODS}
    for result in results:
        assert list(result["domains"]) == ["val", "sketch"]
        assert math.isfinite(result["summary"]["worst_log_loss"])
    start, ends = weights(world / shape), seen[2::2]
    assert equal(seen[0], start) and len(seen) == 11
    assert not any(close(start, end, 1e-5) for end in ends)
    for half, end in zip(seen[1::2], ends):
        assert close(half, {k: (start[k] + end[k]) / 2 for k in start}, 1e-6)

    folder = tmp_path / "drm-lambda-3-posterior-seed-0" / "model"
    loaded = open_clip.create_model(f"local-dir:{folder}", require_pretrained=True).state_dict()
    of_drm, of_dual = (ends[1 + others.index(method)] for method in ("drm", "dual"))
    assert equal(loaded, of_drm) and not equal(loaded, of_dual)
    about = json.loads((folder / "drm.json").read_text())
    expected = dict(method="drm", lam=3, beta=0.25, seed=0, dataset="folder", quick_gelu=False)
    expected |= dict(estimator="posterior")
    assert {k: about[k] for k in expected} == expected
    assert about["prompts"] == dict(
        default={c: [f"a drawing of a {c}."] for c in CLASSES},
        concept={c: [f"{c} with a tail", f"what a {c}"] for c in CLASSES},
    )
    recipe = dict(lr=1e-3, loss=loss, weight_decay=0.2, precision="auto", beta=None)
    recipe |= dict(core_targets="posterior")
    assert {k: about["recipe"][k] for k in recipe} == recipe
    assert about["versions"] == dict(torch=torch.__version__, open_clip=open_clip.__version__)
    [before] = [row for row in results if row["method"] == "drm" and row["alpha"] == 1]
    [again] = drm_min.run(evaluation(world, folder))["results"]
    for key in ("method", "seed", "lam", "estimator", "beta", "domains", "validation", "summary"):
        assert again[key] == before[key]


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    return out, run(out, world, "dropped", **LONG)


def test_eval_only_listens_to_beta_and_refuses_what_is_not_the_models_own(world, finished, tmp_path):
    folder = finished[0] / DRM / "model"
    [own], [other] = (
        drm_min.run(evaluation(world, folder, **more))["results"] for more in ({}, dict(beta=0.9))
    )
    assert (own["beta"], other["beta"]) == (0.5, 0.9)
    assert own["summary"]["worst_log_loss"] != other["summary"]["worst_log_loss"]
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


@pytest.mark.parametrize("dataset", ["folder", "csv"])
@pytest.mark.parametrize("there", [("sketch",), ("id", "sketch"), ("sketch", "val")])
def test_eval_only_wanted_training_and_validation_images(world, finished, tmp_path, capfd, dataset, there):
    """Of what is there, the rule of all runs says what is in distribution: id, else val, else none."""
    root = tmp_path / "data"
    for name in there:
        shutil.copytree(world / "data" / ("val" if name == "id" else name), root / name)
    (root / "sketch" / "dog").rename(tmp_path / "gone")  # a domain need not have all classes
    lines = [f"{p.relative_to(root)},{p.parent.name}" for p in sorted(root.rglob("*.png"))]
    lines = [f"{line},{'val' if line[:3] == 'val' else 'test'},{line.split('/')[0]}" for line in lines]
    (root / "own.csv").write_text("\n".join(["path,label,split,domain", *lines]))
    where = ["--dataset", dataset, "--data-root", str(root / "own.csv" if dataset == "csv" else root)]
    words = [*where, "--device", "cpu", "--workers", "0", "--out", str(tmp_path / "out")]
    words += ["--eval-only", "--model", f"local-dir:{finished[0] / DRM / 'model'}"]
    assert drm_min.main(words) == 0
    inside = next((name for name in ("id", "val") if name in there), "none")
    out, err = capfd.readouterr()
    assert f"\nin distribution: {inside}; shifted: sketch\n" in err and "no tradeoff.png" not in err
    [row] = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    measured = {name: m["accuracy"] for name, m in row["domains"].items() if m["n"]}
    assert measured.keys() == {*there} and row["summary"]["ood_mean_accuracy"] == measured["sketch"]
    assert row["domains"]["sketch"]["n"] == 4 and "| DRM, lambda 1 " in out
    assert (row["validation"]["accuracy"] is None) == ("val" not in there)


def test_evaluation_of_training_images_alone_was_a_traceback(world, finished, tmp_path):
    shutil.copytree(world / "data/train", tmp_path / "data/train")
    with pytest.raises(BadInput, match="--data-root .*: no validation or test images; allowed: a folder"):
        drm_min.run(evaluation(world, finished[0] / DRM / "model", data_root=str(tmp_path / "data")))


def drm_json(**more):
    prompts = {head: {c: [c] for c in CLASSES} for head in ("default", "concept")}
    own = dict(method="drm", beta=0.5, lam=1.0, seed=0, estimator="softmax", prompts=prompts)
    return own | more


@pytest.mark.parametrize(
    "change",
    [
        dict(beta="x"),
        dict(beta=5),
        dict(lam="x"),
        dict(prompts=[]),
        dict(prompts=None),
        dict(prompts=dict(default=3, concept={})),
        dict(prompts=dict(default=dict.fromkeys(CLASSES, "a text"), concept={c: ["a"] for c in CLASSES})),
        dict(prompts=dict(default={c: [] for c in CLASSES}, concept={c: ["a"] for c in CLASSES})),
        dict(method=["drm"]),
        dict(method="zero-shot"),
        dict(method="ensemble"),  # of two models, of which this is one
        dict(method="erm-mixed"),
        dict(estimator=["softmax"]),
        dict(lam=None),  # of wrm alone
    ],
)
def test_a_drm_json_that_no_run_wrote_is_refused(world, tmp_path, change):
    shutil.copytree(world / "vit", tmp_path / "m")
    (tmp_path / "m" / "drm.json").write_text(json.dumps(drm_json()))
    assert drm_min.run(evaluation(world, tmp_path / "m"))["results"][0]["beta"] == 0.5
    (tmp_path / "m" / "drm.json").write_text(json.dumps(drm_json(**change)))
    with pytest.raises(BadInput, match="not one that a run wrote"):
        drm_min.run(evaluation(world, tmp_path / "m"))


def test_a_model_that_was_saved_before_drm_json_named_an_estimator_is_evaluated(world, tmp_path, capsys):
    shutil.copytree(world / "vit", tmp_path / "m")
    about = drm_json()
    del about["estimator"]
    (tmp_path / "m" / "drm.json").write_text(json.dumps(about))
    words = ["--eval-only", "--dataset", "folder", "--data-root", str(world / "data"), "--device", "cpu"]
    words += ["--workers", "0", "--model", f"local-dir:{tmp_path / 'm'}", "--out", str(tmp_path / "out")]
    assert drm_min.main(words) == 0
    assert "| DRM, lambda 1 " in capsys.readouterr().out
    [row] = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert row["estimator"] is None and row["beta"] == 0.5


def test_evaluating_a_toy_model_again_draws_the_images_of_its_own_seed(tmp_path, monkeypatch):
    draw = drm_min.world.draw
    monkeypatch.setattr(drm_min.world, "draw", lambda n, *rest, **more: draw(n // 20, *rest, **more))
    config = dict(device="cpu", epochs=1, batch_size=100, method="erm", seed=3, out=str(tmp_path))
    [trained] = drm_min.run(Config(**config), tmp_path)["results"]
    model = f"local-dir:{tmp_path}/erm-seed-3/model"
    [again] = drm_min.run(Config(eval_only=True, device="cpu", model=model))["results"]
    assert trained["domains"] == again["domains"] and again["seed"] == 3


def test_a_file_where_a_model_will_go_is_said_before_training(world, tmp_path, monkeypatch):
    (tmp_path / DRM).write_text("mine")
    monkeypatch.setattr(drm_min, "train", lambda *args: pytest.fail("training began"))
    with pytest.raises(BadInput, match=f"{DRM}: cannot be written"):
        run(tmp_path, world)
    assert (tmp_path / DRM).read_text() == "mine"


# ----------------------------------------------------------------------------------------- history and time


def test_history_has_a_row_a_step_whose_terms_add_up_and_goes_on_where_it_was_stopped(world, tmp_path):
    more, of = dict(lam=3.0, select="best", epochs=3, warmup=1), "drm-lambda-3-posterior-seed-0"
    assert stop_at(tmp_path, 3, world, **more) == 130
    before = history(tmp_path, of, "step-3")
    [result] = run(tmp_path, world, resume=True, **more)["results"]
    after = history(tmp_path, of)
    assert tuple(after[0]) == checkpoints.COLUMNS and after[:3] == before and len(after) == 6
    assert [(row["step"], row["epoch"]) for row in after] == list(zip("123456", "112233"))
    losses, erm, wrm = (column(after, name) for name in ("loss", "erm_loss", "wrm_loss"))
    assert losses == pytest.approx([a + 3 * b for a, b in zip(erm, wrm)], rel=1e-6)
    assert min(*erm, *wrm) > 0 and len(set(erm)) == 6 and erm != wrm
    assert column(after, "lr") == [1e-3 * drm_min.lr_factor(step, 6, 1) for step in range(6)]
    seconds, scores = column(after, "seconds"), column(after, "validation")
    assert seconds == sorted(seconds) and seconds[0] > 0
    assert [score is None for score in scores] == [True, False] * 3
    assert max(scores[1::2]) == result["validation"]["accuracy"]


@pytest.mark.parametrize(
    "method, of, terms", [("erm", "erm", (True, False)), ("wrm", "wrm-posterior", (False, True))]
)
def test_history_has_no_term_of_a_head_that_is_not_trained(world, tmp_path, method, of, terms):
    run(tmp_path, world, method=method, epochs=1)
    for row in history(tmp_path, f"{of}-seed-0"):
        erm, wrm = float(row["erm_loss"]), float(row["wrm_loss"])
        assert (erm > 0, wrm > 0) == terms and float(row["loss"]) == erm + wrm and row["validation"] == ""


def test_seconds_are_of_a_whole_training_also_after_a_resume(world, tmp_path):
    [whole] = run(tmp_path, world)["results"]
    [again] = run(tmp_path, world, resume=True)["results"]
    assert whole["seconds"] == again["seconds"] > 0


def test_seconds_go_on_where_a_stopped_training_was(world, stopped, tmp_path):
    """As if its three steps had taken a hundred seconds."""
    shutil.copytree(stopped, tmp_path / "out")
    file, before = tmp_path / "out" / DRM / "step-3" / "history.csv", history(stopped, folder="step-3")
    with open(file, "w", newline="") as table:
        writer = csv.DictWriter(table, checkpoints.COLUMNS)
        writer.writeheader()
        writer.writerows([row | {"seconds": 100.0} for row in before])
    [row] = run(tmp_path / "out", world, resume=True, select="best")["results"]
    assert 100 <= row["seconds"] < 200


@pytest.mark.parametrize("seconds, said", [(60, ["about 10 minutes to go"]), (6, [])])
def test_a_long_training_says_how_long_it_will_take(world, tmp_path, monkeypatch, capsys, seconds, said):
    """20 steps, of which each takes a minute, or the tenth of one: two minutes are not long."""
    taken, after_step = [], checkpoints.Checkpoints.after_step

    def counted(*args):
        taken.append(1)
        return after_step(*args)

    clock = SimpleNamespace(perf_counter=lambda: 1000.0 + seconds * len(taken))
    monkeypatch.setattr(checkpoints, "time", clock)
    monkeypatch.setattr(checkpoints.Checkpoints, "after_step", counted)
    [row] = run(tmp_path, world, epochs=10)["results"]
    assert [line for line in capsys.readouterr().err.splitlines() if "to go" in line] == [
        f"{DRM}: {text}" for text in said
    ]
    assert row["seconds"] == 20 * seconds


# --------------------------------------------------------------------------------------------- interruptions

KILLED = """
import csv, json, os, pathlib, random, shutil, sys, torch, drm_min, support.weights
chance = random.Random(0)
owners = dict(save_file=support.weights, save=torch, write_text=pathlib.Path, writerows=csv.DictWriter)
owners |= dict(rmtree=shutil, replace=os, step=torch.optim.AdamW)
for argv, folder, events in json.loads(sys.argv[1]):
    for kill in range(6):
        at = kill < 5 and chance.randrange(2, events)
        when, count = chance.choice(("before", "amid", "after")), [0]
        child = os.fork()
        if not child:
            for name, owner in owners.items():
                def event(*args, do=getattr(owner, name), name=name, **kwargs):
                    count[0] += 1
                    if count[0] == at and when == "amid" and name in ("save_file", "save"):
                        args[1].write_bytes(b"half")
                    if count[0] != at or when == "after":
                        result = do(*args, **kwargs)
                    return os.kill(os.getpid(), 9) if count[0] == at else result
                setattr(owner, name, event)
            os.dup2(2, 1)
            os._exit(drm_min.main(argv + ["--resume"] * (kill > 0)))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        steps = [int(p.name[5:]) for p in pathlib.Path(folder).glob("step-*") if p.suffix == ""]
        print(code, max([0, *steps]), flush=True)
"""


@pytest.mark.slow
def test_runs_killed_ten_times_at_random_have_the_weights_of_the_unbroken_ones(world, tmp_path):
    """Before, amid or after a step, a write, a rename or a removal; a run has five times `events` of them."""
    softmax, of = dict(epochs=10, core_targets=("softmax",)), "drm-lambda-1-softmax-seed-0"
    cases = {"last": softmax | dict(save_every=1), "best": softmax | dict(save_every=2, select="best")}
    jobs = []
    for (case, more), events in zip(cases.items(), (44, 26)):
        words = argv(tmp_path / case, world, "dropped", **more)
        jobs.append((words, str(tmp_path / case / of), events))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, json.dumps(jobs)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | dict(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES=""),
    )
    codes, steps = zip(*(map(int, line.split()) for line in done.stdout.splitlines()))
    assert codes == 2 * ((-signal.SIGKILL,) * 5 + (0,)), done.stderr
    for some in (steps[:5], steps[6:11]):
        assert list(some) == sorted(some) and some[-1] > 2, "no kill costs a checkpoint"
    for case, more in cases.items():
        run(tmp_path / "whole" / case, world, "dropped", **more)
        assert same(tmp_path / case, tmp_path / "whole" / case, of)


@pytest.mark.parametrize("by, step", [(signal.SIGINT, 33), (signal.SIGTERM, 7), (signal.SIGTERM, 40)])
def test_a_signal_saves_a_checkpoint_and_the_resumed_run_equals_the_unbroken_one(
    world, finished, tmp_path, capsys, by, step
):
    """Steps 1 to 20 are erm's, 21 to 40 drm's: in the middle of an epoch, and in the very last step."""
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    assert stop_at(tmp_path, step, world, "dropped", by=by, **LONG) == 130
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("drm_min.py:")]
    assert "--resume" in said[0]
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    of, number = (DRM, step - 20) if step > 20 else ("erm-seed-0", step)
    assert [p.name for p in (tmp_path / of).iterdir()] == [f"step-{number}"]
    assert rows(run(tmp_path, world, "dropped", resume=True, **LONG)) == rows(finished[1])
    assert same(tmp_path, finished[0], "erm-seed-0") and same(tmp_path, finished[0])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="process groups are POSIX")
def test_a_signal_to_the_whole_group_spares_the_workers_and_saves(world, tmp_path):
    """As a batch system sends it; torch's workers would die of it and take the step along."""
    words = argv(tmp_path / "out", world, **LONG | dict(epochs=400, workers=2))
    job = [sys.executable, ROOT / "drm_min.py", *words]
    process = subprocess.Popen(job, start_new_session=True, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "epoch 3," in line:
            break
    os.killpg(process.pid, signal.SIGTERM)
    said = process.stderr.read()
    assert process.wait() == 130 and "--resume" in said and "Traceback" not in said
    assert [p.name[:5] for p in (tmp_path / "out" / "erm-seed-0").iterdir()] == ["step-"]


# ------------------------------------------------------------------------------------------------- resuming


def test_a_signal_was_not_answered_before_its_step_had_ended(world, tmp_path, capfd):
    assert stop_at(tmp_path, 2, world) == 130
    assert "\nstopping after this step\n" in capfd.readouterr().err


def test_resuming_a_finished_run_trains_nothing(world, finished, monkeypatch):
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *args: pytest.fail("trained"))
    assert run(finished[0], world, "dropped", resume=True, **LONG)["results"] == finished[1]["results"]


def test_a_stopped_run_goes_on_in_a_folder_where_another_had_finished(world, tmp_path):
    run(tmp_path, world, lr=5e-4)
    assert stop_at(tmp_path, 3, world, overwrite=True) == 130
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


@pytest.mark.parametrize(
    "change, said",
    [
        (dict(lr=2e-3), "lr"),
        (dict(epochs=3), "epochs"),
        (dict(precision="bf16"), "precision"),
        (dict(template=("a {}.",)), "set of prompts"),
        (dict(descriptions="other.json"), "set of prompts"),
    ],
)
def test_resuming_another_training_is_refused_and_names_what_differs(
    world, stopped, monkeypatch, change, said
):
    monkeypatch.chdir(world)
    with pytest.raises(BadInput, match=f"--resume: .*step-3 was trained with another {said};"):
        run(stopped, world, resume=True, select="best", **change)


def test_other_core_targets_have_a_folder_of_their_own_and_no_other_may_go_on_in_it(world, stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "out")
    more, other = dict(select="best", core_targets=("label",)), "drm-lambda-1-label-seed-0"
    run(tmp_path / "out", world, resume=True, **more)
    run(tmp_path / "whole", world, **more)
    assert same(tmp_path / "out", tmp_path / "whole", other)
    assert [p.name for p in (tmp_path / "out" / DRM).iterdir()] == ["step-3"]
    shutil.rmtree(tmp_path / "out" / other)
    (tmp_path / "out" / DRM).rename(tmp_path / "out" / other)
    with pytest.raises(BadInput, match="--resume: .*step-3 was trained with another epochs, core_targets;"):
        run(tmp_path / "out", world, resume=True, epochs=3, **more)


def test_another_beta_is_refused_on_resume_only_where_it_chose_the_epoch(world, stopped, tmp_path):
    with pytest.raises(BadInput, match="--resume: .*step-3 was trained with another beta;"):
        run(stopped, world, resume=True, select="best", beta=0.9)
    assert stop_at(tmp_path, 3, world) == 130
    [row] = run(tmp_path, world, resume=True, beta=0.9)["results"]
    [whole] = run(tmp_path / "whole", world, beta=0.9)["results"]
    assert row["beta"] == 0.9 and row["domains"] == whole["domains"]
    assert same(tmp_path, tmp_path / "whole")


@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "progress.pt", "history.csv", "drm.json"])
@pytest.mark.parametrize("missing", [False, True])
def test_a_damaged_checkpoint_is_refused(world, stopped, tmp_path, file, missing):
    shutil.copytree(stopped, tmp_path / "out")
    damaged = tmp_path / "out" / DRM / "step-3" / file
    damaged.unlink() if missing else damaged.write_bytes(damaged.read_bytes()[:-9])
    with pytest.raises(BadInput, match="step-3.*(damaged|cannot be read)"):
        run(tmp_path / "out", world, resume=True, select="best")


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", '{"recipe": [], "prompts": 3}', ""])
def test_a_checkpoint_whose_drm_json_is_nonsense_is_refused(world, tmp_path, text):
    run(tmp_path, world)
    (tmp_path / DRM / "model" / "drm.json").write_text(text)
    with pytest.raises(BadInput, match="drm.json|another"):
        run(tmp_path, world, resume=True)


@pytest.mark.parametrize("kept", [0, 1])
def test_a_finished_model_with_half_a_history_is_refused(world, tmp_path, kept):
    """Its heading alone, or cut off in the last row: a table and its seconds are made of it."""
    run(tmp_path, world)
    file = tmp_path / DRM / "model" / "history.csv"
    file.write_bytes(file.read_bytes()[:-9] if kept else file.read_bytes().splitlines(True)[0])
    with pytest.raises(BadInput, match="model is damaged"):
        run(tmp_path, world, resume=True)


@pytest.fixture
def own_data(world, tmp_path):
    """Pictures that a test may change."""
    shutil.copytree(world / "data", tmp_path / "data")
    return tmp_path / "data"


def swap_labels(data):
    one, other = data / "train/cat/0.png", data / "train/dog/0.png"
    one.rename(data / "train/dog/x.png"), other.rename(one)


def another_file(data):
    (data / "train/cat/0.png").rename(data / "train/cat/renamed.png")


@pytest.mark.parametrize("change", [swap_labels, another_file])
@pytest.mark.parametrize("finished", [True, False])
def test_labels_or_files_that_changed_gave_the_old_model(world, own_data, tmp_path, change, finished):
    out, more = tmp_path / "out", dict(data_root=str(own_data))
    assert finished and run(out, world, **more) or stop_at(out, 3, world, **more) == 130
    change(own_data)
    with pytest.raises(BadInput, match="was trained with another training_data; allowed: the same"):
        run(out, world, resume=True, **more)


def one_more(data):
    shutil.copy(data / "val/cat/0.png", data / "val/cat/more.png")


def another_label(data):
    (data / "val/cat/0.png").rename(data / "val/dog/more.png")


@pytest.mark.parametrize("change", [one_more, another_label])
@pytest.mark.parametrize("select, finished", [("best", True), ("best", False), ("last", False)])
def test_validation_that_changed_gave_the_epoch_that_the_old_one_chose(
    world, own_data, tmp_path, change, select, finished
):
    """Where it chooses none, another validation is no other training."""
    out, more = tmp_path / "out", dict(data_root=str(own_data), select=select)
    assert finished and run(out, world, **more) or stop_at(out, 3, world, **more) == 130
    change(own_data)
    if select == "last":
        run(out, world, resume=True, **more)
    else:
        with pytest.raises(BadInput, match="was trained with another validation_data; allowed: the same"):
            run(out, world, resume=True, **more)


@pytest.mark.parametrize("finished", [True, False])
def test_a_training_went_on_from_other_weights_of_the_same_name(world, tmp_path, finished):
    shutil.copytree(world / "vit", tmp_path / "vit")
    out, more = tmp_path / "out", dict(model=f"local-dir:{tmp_path / 'vit'}")
    assert finished and run(out, world, **more) or stop_at(out, 3, world, **more) == 130
    file = tmp_path / "vit" / "open_clip_model.safetensors"
    state = load_file(file)
    save_file(state | {"logit_scale": state["logit_scale"] + 0.01}, file)
    with pytest.raises(BadInput, match="was trained with another zero_shot_model; allowed: the same"):
        run(out, world, resume=True, **more)


def test_pictures_in_memory_that_changed_gave_the_old_model(toy):
    few = toy.train.take(torch.arange(50))
    made, other = checkpoints.digest_of(few, None), few.images.clone()
    other[3, 0, 0, 0] += 1
    for changed in (few.take(torch.arange(50).flip(0)), few.take(torch.arange(49))):
        assert checkpoints.digest_of(changed, None) != made
    changed = drm_min.Split(other, few.labels)
    assert checkpoints.digest_of(changed, None) != made
    assert checkpoints.digest_of(drm_min.Split(few.images, few.labels), None) == made


def test_data_that_were_moved_are_the_same(world, own_data, tmp_path):
    assert stop_at(tmp_path / "out", 3, world) == 130
    run(tmp_path / "out", world, resume=True, data_root=str(own_data))


@pytest.fixture
def evaluations(monkeypatch):
    """A note for each reading of all evaluation images."""
    calls, predict_all = [], drm_min.predict_all

    def noted(*args):
        calls.append(1)
        return predict_all(*args)

    monkeypatch.setattr(drm_min, "predict_all", noted)
    return calls


def test_a_resumed_run_evaluated_finished_trainings_again(world, own_data, tmp_path, evaluations):
    """What an evaluation depends on makes it anew: an image, another alpha or beta, what is kept damaged."""
    out, more = tmp_path / "out", dict(data_root=str(own_data), alpha=(0.5, 1.0), epochs=1)
    first, seen = run(out, world, **more), len(evaluations)
    assert seen == 2 and run(out, world, resume=True, **more)["results"] == first["results"]
    assert len(evaluations) == seen
    kept = out / DRM / "model" / "evaluated.json"

    def is_made_anew(**other):
        before = len(evaluations)
        made = run(out, world, resume=True, **more | other)["results"]
        assert len(evaluations) == before + len((more | other)["alpha"])
        return made

    image = own_data / "sketch/cat/0.png"
    shutil.copy(own_data / "sketch/owl/0.png", image)
    assert is_made_anew() != first["results"]
    image.unlink()
    assert is_made_anew()[0]["domains"]["sketch"]["n"] == 5
    assert [row["alpha"] for row in is_made_anew(alpha=(1.0,))] == [1]
    assert {row["beta"] for row in is_made_anew(beta=0.9)} == {0.9}
    kept.write_text("{")
    is_made_anew()


def test_weights_at_alpha_0_were_evaluated_though_zero_shot_had_been(world, tmp_path, evaluations):
    more = dict(method=("zero-shot", "erm", "wrm"), alpha=(0.0, 1.0), seeds=2, epochs=1)
    made = run(tmp_path, world, **more)["results"]
    assert len(evaluations) == 1 + 4, "zero-shot once for both seeds, and each trained model"
    assert len(made) == 2 * (3 + 2 * 2)
    of = {(row["method"], row["beta"], row["alpha"]): row["domains"] for row in made if row["seed"] == 1}
    for method, beta in (("erm", 1.0), ("wrm", 0.0)):
        assert of[method, beta, 0.0] == of["zero-shot", beta, 0.0] != of[method, beta, 1.0]


def test_a_run_that_was_stopped_had_no_results_of_what_it_had_finished(world, tmp_path):
    """It is stopped in its second training."""
    assert stop_at(tmp_path, 7, world, method=("zero-shot", "erm", "wrm")) == 130
    made = json.loads((tmp_path / "results.json").read_text())["results"]
    assert [row["method"] for row in made] == ["zero-shot"] * 3 + ["erm"]


# -------------------------------------------------------------------------------- what costs no checkpoint


@pytest.mark.parametrize(
    "call, last, fault",
    [
        (3, 3, OSError(28, "No space left")),  # step 6's model
        (3, 3, SafetensorError("No space left (os error 28)")),
        (4, 3, OSError(28, "No space left")),  # its optimizer
        (4, 3, RuntimeError("unexpected pos 704 vs 598: No space left")),
        (5, 6, OSError(28, "No space left")),  # the finished model
        (5, 6, SafetensorError("No space left (os error 28)")),
    ],
)
def test_a_write_that_fails_costs_no_checkpoint(world, tmp_path, monkeypatch, fault, call, last):
    calls, more = [], dict(epochs=4, save_every=3)

    def full(save):
        def save_or_fail(content, path):
            save(content, path)
            calls.append(path)
            if len(calls) == call:
                path.write_bytes(path.read_bytes()[:1000])
                raise fault

        return save_or_fail

    with monkeypatch.context() as patch, pytest.raises(BadInput, match=f"{tmp_path}.*No space left"):
        patch.setattr("support.weights.save_file", full(save_file))
        patch.setattr(torch, "save", full(torch.save))
        run(tmp_path, world, **more)
    assert [p.name for p in (tmp_path / DRM).iterdir() if p.suffix == ""] == [f"step-{last}"]
    run(tmp_path, world, resume=True, **more)
    run(tmp_path / "whole", world, **more)
    assert same(tmp_path, tmp_path / "whole")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a disk that is always full is Linux's")
def test_a_disk_that_is_full_for_the_optimizer_ends_in_one_line(world, tmp_path, monkeypatch, capsys):
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda content, path: save(content, "/dev/full"))
    assert drm_min.main(argv(tmp_path, world, save_every=3)) == 2
    assert f"{DRM}/step-3: cannot be written" in capsys.readouterr().err.splitlines()[-1]


def test_a_loss_that_is_not_finite_names_the_step_and_the_last_good_checkpoint(world, tmp_path):
    said = r"--lr 1000000000.0: .*step \d+ .*last good checkpoint is .*step-\d+"
    with pytest.raises(BadInput, match=said) as stop:
        run(tmp_path, world, lr=1e9, save_every=1, epochs=5)
    [left] = (tmp_path / DRM).iterdir()
    assert str(stop.value).endswith(str(left))
    assert all(v.isfinite().all() for v in load_file(left / "open_clip_model.safetensors").values())


def spoil(optimizer):
    optimizer.param_groups[0]["params"][0].data.fill_(math.nan)


def test_weights_that_are_not_finite_are_never_saved(world, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.optim.AdamW, "step", spoil)
    with pytest.raises(BadInput, match="weights after step 1 are not finite"):
        run(tmp_path, world, save_every=1)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_last_step_that_spoils_the_model_costs_no_finished_one(world, tmp_path, monkeypatch):
    run(tmp_path, world)
    before = weights(tmp_path / DRM / "model")
    monkeypatch.setattr(torch.optim.AdamW, "step", spoil)
    with pytest.raises(BadInput, match="after 1 steps the model is not finite"):
        run(tmp_path, world, epochs=1, batch_size=12)
    assert equal(before, weights(tmp_path / DRM / "model"))


def test_a_parameter_that_no_loss_reaches_and_was_never_finite_stops_nothing(world, tmp_path):
    shutil.copytree(world / "coca", tmp_path / "coca")
    state = weights(world / "coca")
    state["text_decoder.text_projection"].fill_(math.nan)
    save_file(state, tmp_path / "coca" / "open_clip_model.safetensors")
    [row] = run(tmp_path / "out", world, model=f"local-dir:{tmp_path / 'coca'}")["results"]
    assert math.isfinite(row["summary"]["worst_log_loss"])


def test_folders_of_other_names_beside_the_checkpoints_are_left_alone(world, tmp_path):
    for name in ("step-old", "step-1.bak", "step-2.tmp"):
        (tmp_path / DRM / name).mkdir(parents=True)
    run(tmp_path, world)
    assert sorted(p.name for p in (tmp_path / DRM).iterdir()) == [
        "model",
        "predictions.csv",
        "step-1.bak",
        "step-old",
    ]
