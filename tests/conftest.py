"""What several test files share.

The toy world, small models on small pictures, data sets in miniature, a language model that misbehaves.
"""

import functools
import json
import math
import os
import random
import re
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import describe
import drm_min
from support import llm
from support.texts import load_descriptions
from support.weights import load_clip


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="also the slow tests, as CI does")
    parser.addoption("--device", default="cpu", help="where tests that run whole jobs train")


DEVICE = ["cpu"]


def pytest_configure(config):
    DEVICE[0] = config.getoption("--device")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--all"):
        skip = pytest.mark.skip(reason="slow: run with --all")
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(skip)


def pytest_collection_finish(session):
    """Notebooks run on one processor while the other tests run on the other."""
    wanted, module = {}, None
    for item in session.items:
        marker = item.get_closest_marker("beside")
        if marker and (session.config.getoption("--all") or not item.get_closest_marker("slow")):
            module = item.module
            wanted |= {(item.callspec.params["name"], place): None for place in marker.args}
    if wanted and not session.config.getoption("collectonly"):
        torch.set_num_threads(1)  # with more, the two would wait for each other
        os.environ["OMP_NUM_THREADS"] = "1"  # for processes that tests start
        module.BESIDE.start(list(wanted))


pytest.register_assert_rewrite("place")  # tests/faults/place.py, whose assertions are to explain themselves


def pytest_terminal_summary(terminalreporter):
    """How many faults were tried and survived, by area, where tests of tests/faults were run."""
    place = sys.modules.get("place")
    if place and place.TRIED:
        for line in ("", *place.lines_of_the_count()):
            terminalreporter.write_line(line)


# --------------------------------------------------------------------------------------- the toy world


@pytest.fixture(scope="session")
def clip():
    """The tiny CLIP and its tokenizer; tests that change it work on a copy."""
    return load_clip("local-dir:toy/clip")


@pytest.fixture(scope="session")
def toy():
    return drm_min.load_data(drm_min.Config(), seed=0)


@pytest.fixture(scope="session")
def prompts(clip, toy):
    """The prompts of the toy world."""
    _, tokenizer = clip
    names = [[f"a photo of a {name}."] for name in toy.classes.values()]
    concepts = load_descriptions("descriptions/toy.json", toy.classes)
    return drm_min.Prompts(drm_min.tokenize(tokenizer, names), drm_min.tokenize(tokenizer, concepts))


@pytest.fixture
def g():
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """Runs a short job with further options on a quarter of the toy images -> its results.json."""
    whole = drm_min.load_data

    def few(split):
        return split.take(torch.arange(len(split) // 4))

    @functools.cache
    def quarter(seed):
        data = whole(drm_min.Config(), seed)
        tests = {name: few(split) for name, split in data.tests.items()}
        return data._replace(train=few(data.train), val=few(data.val), tests=tests)

    def run(*options):
        out = tmp_path_factory.mktemp("short")
        own = ["--epochs", "1", "--batch-size", "500", "--device", DEVICE[0], "--out", str(out)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(drm_min, "load_data", lambda config, seed: quarter(seed))
            assert drm_min.main([*own, *options]) == 0
        assert (out / "tradeoff.png").stat().st_size > 10000
        return results(out)

    return run


def shipped(dataset):
    """What descriptions/DATASET.json says of each class."""
    path = ROOT / "descriptions" / f"{dataset}.json"
    return json.loads(path.read_text(encoding="utf-8"))["classes"]


def results(out):
    return json.loads((out / "results.json").read_text())


def evaluated(model, data, prompts, betas):
    """What one reading of the images gives -> a result for each beta."""
    p = drm_min.predict_all(model, data, prompts)
    return [drm_min.evaluate(p, data, beta) for beta in betas]


# --------------------------------------------------------------- small random models on small pictures

CLASSES = ("cat", "dog", "owl")
VISION = dict(image_size=32, layers=1, width=32, head_width=16, patch_size=16)
TEXT = dict(context_length=77, vocab_size=49408, width=16, heads=2, layers=1)
VIT = dict(embed_dim=16, vision_cfg=VISION, text_cfg=TEXT)
OF_SIGLIP = TEXT | dict(context_length=16, no_causal_mask=True, proj_bias=True, pool_type="last")
OF_COCA = TEXT | dict(context_length=76, embed_cls=True, output_tokens=True)
TIMM = dict(image_size=32, timm_model_name="test_vit", timm_pool="map", timm_proj="none")
SHAPES = {
    "vit": VIT,
    "dropped": VIT | dict(vision_cfg=VISION | dict(patch_dropout=0.5)),  # chance has a part in its training
    "resnet": VIT | dict(vision_cfg=dict(image_size=32, layers=[1, 1, 1, 1], width=8)),
    "siglip": dict(
        embed_dim=64,
        custom_text=True,
        init_logit_scale=math.log(10),
        init_logit_bias=-10,
        vision_cfg=TIMM,
        text_cfg=OF_SIGLIP,
    ),
    "coca": VIT
    | dict(
        custom_text=True,
        vision_cfg=VISION | dict(attentional_pool=True, attn_pooler_heads=2, output_tokens=True),
        text_cfg=OF_COCA,
        multimodal_cfg=TEXT | dict(context_length=76, attn_pooler_heads=2),
    ),
}
NAME = "drm-test-vit"  # under which open_clip knows the small ViT, where a test says so
DRM = "drm-lambda-1-posterior-seed-0"


@pytest.fixture(scope="module")
def one_thread():
    """As in the processes that are killed: another number of threads rounds differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder with a random model of every shape, pictures of a `folder` data set, two description files."""
    root, g = tmp_path_factory.mktemp("world"), torch.Generator().manual_seed(0)
    for shape, cfg in SHAPES.items():
        (root / shape).mkdir()
        squash = dict(mean=[0.5] * 3, std=[0.5] * 3, interpolation="bilinear", resize_mode="squash")
        config = dict(model_cfg=cfg, preprocess_cfg=squash if shape == "siglip" else {})
        (root / shape / "open_clip_config.json").write_text(json.dumps(config))
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
        texts = {name: [say.format(name), f"what a {name}"] for name in CLASSES}
        (root / file).write_text(json.dumps(texts))
    return root


def options(out, world, shape="vit", **more):
    """A run on the `folder` data set of small pictures and a small random model."""
    own = dict(dataset="folder", data_root=str(world / "data"), descriptions=str(world / "looks.json"))
    own |= dict(device=DEVICE[0], workers=0, model=f"local-dir:{world / shape}")
    own |= dict(template=("a drawing of a {}.",))
    own |= dict(method="drm", epochs=2, batch_size=6, lr=1e-3, warmup=0, select="last", save_every=0)
    return own | dict(out=str(out)) | more


def run(out, *args, **more):
    return drm_min.run(drm_min.Config(**options(out, *args, **more)), out)


def argv(*args, **more):
    """The options as words of a command line."""
    words = []
    for name, value in options(*args, **more).items():
        values = value if isinstance(value, tuple) else [value] if value is not True else []
        words += ["--" + name.replace("_", "-"), *map(str, values)]
    return words


def evaluation(world, folder, **more):
    where = dict(data_root=str(world / "data"), model=f"local-dir:{folder}")
    return drm_min.Config(dataset="folder", device=DEVICE[0], workers=0, eval_only=True, **where | more)


def weights(folder):
    return load_file(folder / "open_clip_model.safetensors")


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


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


@pytest.fixture(scope="module")
def stopped(world, tmp_path_factory):
    """A run that was stopped in step 3 of 4, after the first epoch of 2."""
    out = tmp_path_factory.mktemp("stopped")
    assert stop_at(out, 3, world, select="best") == 130
    return out


# ------------------------------------------------------------------------------ data sets in miniature


def guessed(guesses, size):
    """Probabilities (N, C) of a model that is sure of the classes `guesses`."""
    p = torch.full((len(guesses), size), 0.01, dtype=torch.double)
    p[range(len(guesses)), guesses] = 0.9
    return p


def of_groups(m):
    """Metrics -> {group: (accuracy, n)}."""
    return {k[9:]: (v, m["n_" + k[9:]]) for k, v in m.items() if k.startswith("accuracy_")}


def pictures(root, *names, size=(8, 8)):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, "red").save(root / name)
    return root


def noise(path, seed, size=(40, 48)):
    Image.frombytes("RGB", size, random.Random(seed).randbytes(3 * size[0] * size[1])).save(path)


def table(path, header, *rows, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n", encoding=encoding)


def load(dataset, root, **options):
    return drm_min.load_data(drm_min.Config(dataset=dataset, data_root=str(root), **options))


FMOW = """train,airport_hangar,DEU,2012-12-31T23:59:59Z seq,zoo,USA,2010-01-01T00:00:00Z
train,zoo,USA,2013-01-01T00:00:00Z val,zoo,USA,2012-12-31T23:59:59.999Z val,zoo,KEN,2013-01-01T00:00:00.000Z
test,airport_hangar,IND,2012-12-31T23:59:59Z seq,zoo,USA,2017-01-01T00:00:00Z
test,zoo,ATA,2011-06-01T10:00:00.123Z test,zoo,XXX,2016-01-01T00:00:00.000Z
test,zoo,KEN,2015-12-31T23:59:59.999Z test,airport_hangar,AUS,2016-01-01T00:00:00Z
test,zoo,AUS,2017-08-08T01:02:03.456Z test,zoo,DEU,2016-05-05T05:05:05Z
train,airport_hangar,KEN,2009-01-01T00:00:00Z test,zoo,USA,2013-01-01T00:00:00Z
val,zoo,DEU,2016-01-01T00:00:00Z test,zoo,DEU,2018-01-01T00:00:00Z""".split()
# of rows 0 to 16: train 0 13, val 3, id_test 5 7


def fmow(root, rows=FMOW):
    table(root / "fmow_v1.1/rgb_metadata.csv", "split,category,country_code,timestamp", *rows)
    regions = ("DEU,Europe", "IND,Asia", "KEN,Africa", "USA,Americas", "AUS,Oceania", "ATA,")
    table(root / "fmow_v1.1/country_code_mapping.csv", "alpha-3,region", *regions)
    images = (f"rgb_img_{i}.png" for i in (0, 3, 5, 7, 8, 10, 11, 12, 13, 16))
    pictures(root / "fmow_v1.1/images", *images)
    return load("fmow", root)


IWILDCAM = """test,3,2,h val,3,0,ood train,3,10,a id_test,3,0,d train,3,0,b id_test,3,0,e id_val,3,2,c
test,3,10,i id_test,3,1,f id_test,3,1,g train,3,2,j""".split()


def iwildcam(root):
    base = root / "iwildcam_v2.0"
    rows = (f"{i},{row}.jpg" for i, row in enumerate(IWILDCAM))
    table(base / "metadata.csv", ",split,location,y,filename", *rows, encoding="utf-8-sig")
    without_images = "99999,10,motorcycle", "99999,2,unknown raptor"  # category_ids of y 10 and y 2
    categories = (f"{y},{y},genus {y}" for y in range(10, -1, -1))
    header = "y,category_id,name"
    table(base / "categories.csv", header, *without_images, *categories, encoding="utf-8-sig")
    pictures(base / "train", *(f"{name}.jpg" for name in "abcdefghij"))
    return load("iwildcam", root)


def imagenet(root, *images, val="val"):
    """Tench (index 0) and great white shark (2) in training, the shark in validation, further images."""
    own = ("train/n01440764/a.JPEG", "train/n01484850/b.JPEG", f"{val}/n01484850/c.JPEG")
    return pictures(root / "imagenet", *own, *(f"../{image}" for image in images)).parent


def own_folder(root, *images):
    own = ("train/swimming_pool/a.png", "train/ski/b.PNG", "val/ski/c.jpeg", "val/swimming_pool/d.png")
    return pictures(root, *own, *images)


CSV = """a.png,ski,train,x b.png,tent,train,y c.png,tent,val,x d.png,ski,test,sea e.png,tent,test,id
f.png,tent,test,sea""".split()


# -------------------------------------------------------------------- a language model that misbehaves

KEY = "sk-secret-of-the-test"
IDS = {"0": "crane", "1": "sea lion", "2": "Günther's dik-dik"}
dumps = functools.partial(json.dumps, ensure_ascii=False)


def texts(key, version=""):
    return [f"{version}the first look of thing {key}", f"{version}what else thing {key} shows"]


ALL = {key: texts(key) for key in IDS}


def reply(body=b"{}", status=200, how="", **headers):
    return body, status, how, headers


def says(content, finish="stop", **changes):
    """A reply in OpenAI's form."""
    message = dict(role="assistant", content=dumps(content) if isinstance(content, dict) else content)
    body = dict(id="chatcmpl-1", object="chat.completion", created=1, model="writer")
    body |= dict(choices=[dict(index=0, message=message, finish_reason=finish)])
    body |= dict(usage=dict(prompt_tokens=1, completion_tokens=1, total_tokens=2))
    return reply(json.dumps(body | changes).encode())


def good(ids):
    return says({key: texts(key) for key in ids})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept

    def log_message(self, *_):
        pass

    def do_POST(self):
        stub, sent = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        listed = sent["messages"][0]["content"].split("Classes (id: name)\n")[1]
        ids = re.findall(r"^(.+?): ", listed, re.M)
        on_disk = list(stub.written()) if stub.out.exists() else []
        about = dict(path=self.path, key=self.headers["Authorization"], asked=ids, on_disk=on_disk)
        stub.requests.append(sent | about)
        order = stub.script.pop(0) if stub.script else good
        body, status, how, headers = order(ids) if callable(order) else order
        self.close_connection = bool(how)
        if how != "hang":
            self.send_response(status)
            for name, value in [*headers.items(), ("Transfer-Encoding", "chunked")]:
                self.send_header(name.replace("_", "-"), str(value))
            self.end_headers()
            parts = (body[: len(body) // 2], body[len(body) // 2 :], b"")
            for part in parts[: 1 if how else 3]:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        if "hang" in how and not stub.over.wait(20):
            stub.waits.append("without end")


class Stub(ThreadingHTTPServer):
    """script: what to do with the next requests: replies, or functions of the ids. Later ones go well."""

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.out = folder, folder / "o.json"
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.script, self.requests, self.waits, self.over = [], [], [], threading.Event()
        self.want(IDS)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def want(self, classes):
        self.classes = classes
        lines = "".join(f"{k}\t{v}\n" for k, v in classes.items())
        (self.folder / "c.txt").write_text(lines, encoding="utf-8")

    def argv(self, *more):
        own = ["--classes", str(self.folder / "c.txt"), "--llm", "writer", "--out", str(self.out)]
        return [*own, "--batch", "3", *more]

    def generate(self, *more):
        return describe.main(self.argv("--base-url", self.url, *more))

    @property
    def asked(self):
        return ["".join(r["asked"]) for r in self.requests]

    def written(self):
        return json.loads(self.out.read_text(encoding="utf-8"))["classes"]

    def is_complete(self):
        wanted = [(k, dict(name=v, descriptions=texts(k))) for k, v in self.classes.items()]
        return list(self.written().items()) == wanted


@pytest.fixture
def stub(tmp_path, monkeypatch):
    stub = Stub(tmp_path)
    monkeypatch.setattr(llm.time, "sleep", stub.waits.append)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for name, value in dict(OPENAI_API_KEY=KEY, NO_PROXY="127.0.0.1", no_proxy="127.0.0.1").items():
        monkeypatch.setenv(name, value)
    yield stub
    stub.over.set()
    stub.shutdown()
    stub.server_close()


OF_NAME = functools.lru_cache(open_clip.get_tokenizer)


@pytest.fixture
def one_tokenizer(monkeypatch):
    """Tokenizers take a second to make: one of each is enough."""
    monkeypatch.setattr(open_clip, "get_tokenizer", OF_NAME)
