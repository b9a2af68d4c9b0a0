"""Kills, signals, full disks and things that vanish: no checkpoint and no result is lost; the run goes on."""

import contextlib
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import DRM, ROOT, argv, equal, run, stop_at, weights
from place import (
    contents,
    counted,
    one_line,
    place_for_faults,  # noqa: F401  the fixture `place`
    within,
)

import drm_min
import support.weights
from support import errors
from support.errors import BadInput

pytestmark = pytest.mark.usefixtures("one_thread", "one_tokenizer")
posix_only = pytest.mark.skipif(os.name != "posix", reason="files are kept small by a limit of POSIX")
with_a_full_device = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")

# ----------------------------------------------------------------------------------- kills and signals

WRITER = """
import os, pathlib, random, sys, threading, time, torch
import drm_min
from support.checkpoints import COLUMNS, Checkpoints, tqdm

tqdm.set_lock(threading.RLock())  # its own is shared with forked children, and one that is killed may hold it

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.visual = torch.nn.Parameter(torch.zeros(256, 512)), torch.nn.Identity()
        self.model_cfg, self.visual.image_size = dict(quick_gelu=False), 32

class Scaler:
    state_dict, load_state_dict = lambda self: {}, lambda self, state: None

def load():
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters())
    keep = Checkpoints(config, about, None, out)
    keep.load(model, optimizer, Scaler())
    return model, optimizer, keep

def history(n):
    row = dict.fromkeys(COLUMNS, float(n)) | dict(step=n, epoch=n, validation=None)
    return [row] * n

def fill(model, optimizer, n):  # every number of checkpoint n is n, so that a mixture of two would show
    model.weight.data.fill_(n)
    moment = torch.full_like(model.weight, n)
    state = dict(step=torch.tensor(float(n)), exp_avg=moment, exp_avg_sq=moment.clone())
    optimizer.state[model.weight] = state

config = drm_min.Config(resume=True)
about = dict(method="erm", lam=0.0, seed=0, estimator=None, recipe={}, prompts={})
out, chance, said, amid = pathlib.Path(sys.argv[1]), random.Random(0), 0, 0
folder = out / "erm-seed-0"
folder.mkdir(parents=True)
for kill in range(50):
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        model, optimizer, keep = load()
        n = len(keep.history)
        with keep.watching(model, 10**6):
            while True:
                n += 1
                fill(model, optimizer, n)
                keep.history = history(n)
                state = {k: v.clone() for k, v in model.state_dict().items()}
                keep.best = dict(score=1.0, epoch=n, state=state)
                keep.save(model, optimizer, Scaler())
                if n % 5 == 0:
                    keep.finish(model, lambda: model.weight)
                os.write(writer, n.to_bytes(4, "little"))
    os.close(writer)
    said = int.from_bytes(os.read(reader, 4), "little")  # the first one is there; then at any moment
    time.sleep(chance.uniform(0, 0.03))
    os.kill(child, 9)
    os.waitpid(child, 0)
    while more := os.read(reader, 4):
        said = int.from_bytes(more, "little")
    os.close(reader)
    amid += any(p.suffix in (".tmp", ".old") for p in folder.iterdir())
    model, optimizer, keep = load()
    n, state = len(keep.history), optimizer.state.get(model.weight, {})
    assert n >= said > 0, (n, said)
    assert keep.history == history(n) and model.weight.eq(n).all()
    if not keep.finished:
        assert keep.best["epoch"] == n and keep.best["state"]["weight"].eq(n).all()
        assert len(state) == 3 and all(v.eq(n).all() for v in state.values())
print(n, amid)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
@counted("kills", 50)
def test_the_newest_complete_checkpoint_loads_after_each_of_fifty_kills_amid_writing(tmp_path):
    """A child does nothing but save and finish, and says each that is complete.

    What loads is that one or a newer one, whole.
    """
    env = os.environ | dict(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    command = [sys.executable, "-c", WRITER, tmp_path / "c"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    n, amid = map(int, done.stdout.split())
    assert n >= 50 and amid >= 10, "kills hit the writing itself"


def again(out, world, **more):
    """The stopped run goes on to its end -> its weights."""
    run(out, world, resume=True, **more)
    return weights(out / DRM / "model")


def whole(out, world, **more):
    """A run that nothing happened to -> its weights."""
    run(out, world, **more)
    return weights(out / DRM / "model")


def amid_saving(monkeypatch, at, fault):
    """fault() comes when the given file, of weights or of progress, begins to be written."""

    def faulty(save):
        def wrapped(content, path):
            if at in str(path):
                fault()
            save(content, path)

        return wrapped

    monkeypatch.setattr(support.weights, "save_file", faulty(support.weights.save_file))
    monkeypatch.setattr(torch, "save", faulty(torch.save))


def amid_placing(monkeypatch, fault):
    """fault() comes whenever something that was written is put in its place."""
    replace = os.replace

    def faulty(*args):
        fault()
        replace(*args)

    monkeypatch.setattr(os, "replace", faulty)


def amid_step(monkeypatch, number, fault):
    """fault() comes within this step, before the one of the optimizer."""
    loss, taken = drm_min.dual_loss, []

    def faulty(*args):
        taken.append(1)
        if len(taken) == number:
            fault()
        return loss(*args)

    monkeypatch.setattr(drm_min, "dual_loss", faulty)


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


SECOND = {
    "in the same step": lambda patch: amid_step(patch, 3, interrupt),
    "while the checkpoint is written": lambda patch: amid_saving(patch, "step-3.tmp/progress", interrupt),
    "while it is put in its place": lambda patch: amid_placing(patch, interrupt),
}


@pytest.mark.parametrize("second", SECOND)
@counted("signals")
def test_ctrl_c_twice_leaves_the_checkpoint_whole(world, tmp_path, monkeypatch, capsys, second):
    """The first stops the run at the end of the step.

    Until its checkpoint is there, a second one changes nothing.
    """
    with monkeypatch.context() as patch:
        SECOND[second](patch)
        assert stop_at(tmp_path / "out", 3, world, by=signal.SIGINT) == 130
    assert "--resume" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "out" / DRM).iterdir()] == ["step-3"]
    assert equal(again(tmp_path / "out", world), whole(tmp_path / "whole", world))


@counted("signals")
def test_ctrl_c_while_the_finished_model_is_written_costs_no_training(world, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        amid_saving(patch, "model.tmp", interrupt)
        assert drm_min.main(argv(tmp_path / "out", world)) in (0, 130)
    kept = next((tmp_path / "out" / DRM).glob("[ms]*"))
    assert equal(weights(kept), whole(tmp_path / "whole", world))


# --------------------------------------------------------------------------------------- full and gone


@contextlib.contextmanager
def largest_file(size):
    """Writing beyond `size` bytes fails, as on a full disk."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("left", ["results.json", "a model", "a checkpoint"])
@counted("lost files")
def test_the_same_command_again_destroyed_what_an_earlier_run_left(
    world, stopped, tmp_path, monkeypatch, capfd, left
):
    """Refused before anything is read, in a line with the ways out."""
    if left == "a checkpoint":
        shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    else:
        assert drm_min.main(argv(tmp_path, world, epochs=1)) == 0
    if left == "a model":
        (tmp_path / "results.json").unlink()
    before = contents(tmp_path)
    capfd.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(drm_min, "load_data", lambda *_: pytest.fail("it began"))
        assert drm_min.main(argv(tmp_path, world, lr=5e-4)) == 2
    what = {"results.json": "results.json", "a model": f"{DRM}/model", "a checkpoint": f"{DRM}/step-3"}[left]
    ways = ["--resume", "--overwrite", "another --out"]
    one_line("drm_min.py", capfd.readouterr(), [f"--out {tmp_path}", what, *ways])
    assert contents(tmp_path) == before
    assert drm_min.main(argv(tmp_path, world, lr=5e-4, epochs=1, overwrite=True)) == 0
    assert drm_min.main(argv(tmp_path, world, lr=5e-4, epochs=1, resume=True)) == 0


@counted("lost files")
def test_an_evaluation_again_destroyed_the_results_of_another(place, capfd):
    command = [word for word in place.evaluate() if word != "--overwrite"]
    before = contents(place.out)
    assert drm_min.main(command) == 2
    one_line("drm_min.py", capfd.readouterr(), ["results.json", "--overwrite", "another --out"])
    assert contents(place.out) == before


def owner(pid, host=None):
    return f"{pid} on {host or socket.gethostname()}"


def ended():
    """The number of a process that was."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


LOCKS = {
    "a living process": lambda: owner(os.getppid()),
    "another host": lambda: owner(ended(), "elsewhere"),
    "half a line": lambda: "12",
    "no text": lambda: b"\xff\x00",
    "a number of 5000 digits": lambda: owner("9" * 4000),
}


@pytest.mark.parametrize("by", LOCKS)
@pytest.mark.parametrize("way", ["--overwrite", "--resume"])
@counted("lost files")
def test_two_jobs_in_one_folder_cost_the_results_of_one(place, capfd, by, way):
    place.write("out/lock", LOCKS[by]())
    before = contents(place.out)
    assert drm_min.main([*[word for word in place.run() if word != "--overwrite"], way]) == 2
    one_line("drm_min.py", capfd.readouterr(), [f"--out {place.out}", "another run", "another --out", "lock"])
    assert contents(place.out) == before


@pytest.mark.parametrize("pid", [ended, os.getpid], ids=["ended", "of this number"])
@counted("lost files")
def test_the_lock_of_a_run_that_was_killed_stops_nobody(place, pid):
    place.write("out/lock", owner(pid()))
    assert drm_min.main(place.run()) == 0 and not (place.out / "lock").exists()


def test_of_two_runs_that_saw_the_lock_of_a_killed_one_both_took_it(tmp_path, monkeypatch):
    """The faster one takes it between the other's look and its hand."""
    seen, faster = errors.is_over, contextlib.ExitStack()

    def slow(by):
        over = seen(by)
        monkeypatch.setattr(errors, "is_over", seen)
        faster.enter_context(errors.locked(tmp_path))
        (tmp_path / "lock").write_text(owner(os.getppid()))  # as a second process sees it
        return over

    (tmp_path / "lock").write_text(owner(ended()))
    monkeypatch.setattr(errors, "is_over", slow)
    with faster:
        with pytest.raises(BadInput, match="another run"):
            with errors.locked(tmp_path):
                pass
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]


@counted("lost files")
def test_a_run_holds_its_folder_from_the_first_to_the_last_moment(world, tmp_path, monkeypatch, capfd):
    """A second one that comes while pictures are drawn, and one that a signal ended."""
    words, show = argv(tmp_path, world, method="zero-shot"), drm_min.report.show

    def shown(*args):
        lock = (tmp_path / "lock").read_text()
        (tmp_path / "lock").write_text(owner(os.getppid()))  # as a second process sees it
        assert lock == owner(os.getpid()) and drm_min.main([*words, "--resume"]) == 2
        show(*args)

    monkeypatch.setattr(drm_min.report, "show", shown)
    assert drm_min.main(words) == 0 and "another run, process" in capfd.readouterr().err
    assert stop_at(tmp_path / "stopped", 3, world) == 130
    assert not [*tmp_path.rglob("lock")]


@posix_only
@pytest.mark.parametrize("size", [100_000, 4_000_000])
@counted("disk")
def test_a_full_disk_costs_no_checkpoint_and_the_run_goes_on_when_there_is_room(place, world, capfd, size):
    """It is full in the weights, or after them in the optimizer."""
    command = place.resume() + ["--save-every", "1"]
    before = contents(place.out)
    capfd.readouterr()
    with largest_file(size):
        assert drm_min.main(command) == 2
    one_line("drm_min.py", capfd.readouterr(), [str(place.out), "cannot be written"])
    after = contents(place.out)
    assert all(after[name] == before[name] for name in before)
    left = after.keys() - before.keys()
    assert left and all(".tmp" in name for name in left)
    assert any(name.endswith("progress.pt") for name in left) == (size == 4_000_000)
    in_full = whole(place.root / "whole", world, select="best")
    assert equal(again(place.out, world, select="best"), in_full)


@posix_only
@pytest.mark.parametrize("size, file", [(3000, "results.json"), (10_000, "tradeoff.png")])
@counted("disk")
def test_a_full_disk_costs_no_older_result(place, capfd, size, file):
    """The table is printed before pictures are drawn, so that a picture costs no table."""
    capfd.readouterr()
    with largest_file(size):
        assert drm_min.main(place.run()) == 2
    captured = capfd.readouterr()
    one_line("drm_min.py", captured, [file, "cannot be written", "still there"])
    assert (place.out / file).read_text() == f"old {file}"
    assert ("zero-shot, default head" in captured.out) == (file == "tradeoff.png")


@with_a_full_device
@counted("disk")
def test_a_standard_output_that_is_full_is_said_in_one_line(place, capfd, monkeypatch):
    capfd.readouterr()
    full = open("/dev/full", "w")
    with contextlib.ExitStack() as stack, monkeypatch.context() as patch:
        stack.enter_context(contextlib.suppress(OSError))  # of close(), which writes once more
        stack.callback(full.close)
        patch.setattr(sys, "stdout", full)
        assert drm_min.main(place.run()) == 2
    one_line("drm_min.py", capfd.readouterr(), ["output"])


@with_a_full_device
@counted("disk")
def test_a_full_disk_under_the_raw_answers_is_said_in_one_line(stub, capfd):
    (stub.folder / "o.json.raw.jsonl").symlink_to("/dev/full")
    assert stub.generate() == 2
    one_line("describe.py", capfd.readouterr(), ["o.json.raw.jsonl"])


@counted("disk")
def test_an_output_folder_that_may_only_be_read_is_said_before_training(place, capfd, monkeypatch):
    """Permission binds no superuser; there it is a folder of the kernel's."""
    folder = place.root / "fixed"
    folder.mkdir()
    folder.chmod(0o555)
    if os.access(folder, os.W_OK):
        folder = Path("/proc/drm")
        if not folder.parent.is_dir():
            pytest.skip("every folder can be written")
    monkeypatch.setattr(drm_min, "train", lambda *args: pytest.fail("training began"))
    command = argv(folder, place.world)
    capfd.readouterr()
    assert drm_min.main(command) == 2
    one_line("drm_min.py", capfd.readouterr(), [f"--out {folder}", "cannot be written"])


@pytest.mark.parametrize("name", ["results.json", "tradeoff.png"])
@counted("lost files")
def test_a_folder_that_is_called_like_a_result_is_not_removed(place, capfd, name):
    (place.out / name).unlink()
    place.write(f"out/{name}/mine.txt", "mine")
    capfd.readouterr()
    code = drm_min.main(place.run())
    assert (place.out / name / "mine.txt").read_text() == "mine" and code == 2
    one_line("drm_min.py", capfd.readouterr(), [name])


@counted("lost files")
def test_a_file_called_model_where_the_model_will_go_is_said_before_training(place, capfd, monkeypatch):
    place.write(f"out/{DRM}/model", "mine")
    monkeypatch.setattr(drm_min, "train", lambda *args: pytest.fail("training began"))
    capfd.readouterr()
    assert drm_min.main(place.run(method="drm")) == 2
    one_line("drm_min.py", capfd.readouterr(), ["model", "cannot be written"])


def in_each_step_but_the_first(patch, happens):
    taken, take = [], torch.optim.AdamW.step

    def step(*args):
        taken.append(1)
        if len(taken) > 1:
            happens()
        return take(*args)

    patch.setattr(torch.optim.AdamW, "step", step)


@pytest.mark.parametrize("workers", [0, 2])
@counted("gone")
def test_an_image_that_vanishes_is_named_and_the_run_goes_on_when_it_is_back(
    world, tmp_path, monkeypatch, capfd, workers
):
    shutil.copytree(world / "data", tmp_path / "data")
    image = tmp_path / "data/train/cat/0.png"
    more = dict(data_root=str(tmp_path / "data"), save_every=1, epochs=6)
    with monkeypatch.context() as patch:
        in_each_step_but_the_first(patch, lambda: image.unlink(missing_ok=True))
        assert drm_min.main(argv(tmp_path / "out", world, workers=workers, **more)) == 2
    one_line("drm_min.py", capfd.readouterr(), [str(image), "No such file"])
    shutil.copy(world / "data/train/cat/0.png", image)
    assert equal(again(tmp_path / "out", world, **more), whole(tmp_path / "whole", world, **more))


@counted("gone")
def test_a_worker_that_dies_is_said_in_one_line_and_costs_no_checkpoint(world, tmp_path, monkeypatch, capfd):
    """As the kernel kills it where memory is short."""

    def kill_all():
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)

    with monkeypatch.context() as patch:
        in_each_step_but_the_first(patch, kill_all)
        with within(20):
            assert drm_min.main(argv(tmp_path, world, workers=2, save_every=1, epochs=6)) == 2
    one_line("drm_min.py", capfd.readouterr(), ["--workers"])
    assert len([p for p in (tmp_path / DRM).iterdir() if p.suffix == ""]) == 1


@counted("gone")
def test_a_worker_that_dies_amid_writing_is_not_taken_for_a_full_disk(world, tmp_path, monkeypatch, capfd):
    """torch raises its death wherever the program is; a full disk under torch.save is of the same type."""

    def die():
        raise RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed.")

    amid_saving(monkeypatch, "step-2.tmp/progress", die)
    assert drm_min.main(argv(tmp_path, world, save_every=1)) == 2
    one_line("drm_min.py", capfd.readouterr(), ["--workers", "pid 3", "allowed: fewer, or 0"])
    assert [p.name for p in (tmp_path / DRM).iterdir() if p.suffix == ""] == ["step-1"]


CPU = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: 9 bytes"
SHORT = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has none."),
    "CPU": RuntimeError(CPU),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "Apple": RuntimeError("MPS backend out of memory (MPS allocated: 9.06 GB)"),
    "Windows": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory"
    ),
    "Python": MemoryError(),
}


@pytest.mark.parametrize("of", SHORT)
@pytest.mark.parametrize("when", ["training", "evaluation", "loading a checkpoint"])
@counted("gone")
def test_memory_that_is_short_was_a_traceback_or_a_damaged_checkpoint(
    world, stopped, tmp_path, monkeypatch, capfd, of, when
):
    """It ends in a line that says what needs less of it, and what that is now."""

    def short(*_, **__):
        raise SHORT[of]

    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    where = {"training": "dual_loss", "evaluation": "predict_all"}
    if when in where:
        monkeypatch.setattr(drm_min, where[when], short)
    else:
        monkeypatch.setattr(torch, "load", short)
    before = contents(tmp_path)
    assert drm_min.main(argv(tmp_path, world, select="best", resume=True)) == 2
    ways = ["out of memory", "--accumulate, now 1", "--grad-checkpointing", "--batch-size, now 6"]
    one_line("drm_min.py", capfd.readouterr(), ways)
    after = contents(tmp_path)
    assert when == "evaluation" or after == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@counted("gone")
def test_descriptions_from_a_pipe_are_read_once(world, tmp_path):
    """As a shell's <(command) gives them.

    A second reading waits without end, or finds nothing and says so to nobody.
    """
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    child = subprocess.Popen(["sh", "-c", 'cat "$0" > "$1"', world / "looks.json", pipe])
    try:
        with within(3):
            report = run(tmp_path / "out", world, method="zero-shot", descriptions=str(pipe))
    finally:
        child.kill()
        child.wait()
    of_file = run(tmp_path / "out", world, method="zero-shot")
    assert report["about"]["prompts_sha256"] == of_file["about"]["prompts_sha256"]
