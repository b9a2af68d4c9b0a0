"""Descriptions: written through a server that misbehaves, checked, compared; and those that are shipped."""
import functools
import importlib.resources
import json
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import open_clip
import pytest

import describe
from toy import world

KEY = "sk-secret-of-the-test"
CLASSES = {"0": "crane", "1": "sea lion", "2": "Günther's dik-dik"}
dumps = functools.partial(json.dumps, ensure_ascii=False)
FIVE = {key: f"thing {key}" for key in "badce"}  # in another order than the alphabet's


def texts(key, version=""):
    return [f"{version}the first look of thing {key}", f"{version}what else thing {key} shows"]


def reply(body=b"{}", status=200, how="", **headers):
    return body, status, how, headers


def says(content, finish="stop", **changes):
    """A reply in OpenAI's form."""
    message = dict(role="assistant", content=dumps(content) if isinstance(content, dict) else content)
    body = dict(id="chatcmpl-1", object="chat.completion", created=1, model="writer",
                choices=[dict(index=0, message=message, finish_reason=finish)],
                usage=dict(prompt_tokens=1, completion_tokens=1, total_tokens=2))
    return reply(json.dumps(body | changes).encode())


def good(ids):
    return says({key: texts(key) for key in ids})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept

    def log_message(self, *_):
        pass

    def do_POST(self):
        stub, sent = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        ids = re.findall(r"^(.+?): ", sent["messages"][0]["content"].split("Classes (id: name)\n")[1], re.M)
        on_disk = list(stub.written()) if stub.out.exists() else []
        stub.requests.append(sent | dict(path=self.path, key=self.headers["Authorization"], asked=ids, on_disk=on_disk))
        order = stub.script.pop(0) if stub.script else good
        body, status, how, headers = order(ids) if callable(order) else order
        self.close_connection = bool(how)
        if how != "hang":
            self.send_response(status)
            for name, value in [*headers.items(), ("Transfer-Encoding", "chunked")]:
                self.send_header(name.replace("_", "-"), str(value))
            self.end_headers()
            for part in (body[:len(body) // 2], body[len(body) // 2:], b"")[:1 if how else 3]:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        if "hang" in how and not stub.over.wait(20):
            stub.waits.append("without end")


class Stub(ThreadingHTTPServer):
    """script: what to do with the next requests, replies or functions of the ids; those after it are answered well."""

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.out, self.url = folder, folder / "o.json", f"http://127.0.0.1:{self.server_port}/v1"
        self.script, self.requests, self.waits, self.over = [], [], [], threading.Event()
        self.want(CLASSES)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def want(self, classes):
        self.classes = classes
        (self.folder / "c.txt").write_text("".join(f"{k}\t{v}\n" for k, v in classes.items()), encoding="utf-8")

    def argv(self, *more):
        return ["--classes", str(self.folder / "c.txt"), "--llm", "writer", "--out", str(self.out), "--batch", "3", *more]

    def generate(self, *more):
        return describe.main(self.argv("--base-url", self.url, *more))

    @property
    def asked(self):
        return ["".join(r["asked"]) for r in self.requests]

    def written(self):
        return json.loads(self.out.read_text(encoding="utf-8"))["classes"]

    def is_complete(self):
        return list(self.written().items()) == [(k, dict(name=v, descriptions=texts(k))) for k, v in self.classes.items()]


@pytest.fixture
def stub(tmp_path, monkeypatch):
    stub = Stub(tmp_path)
    monkeypatch.setattr(describe.time, "sleep", stub.waits.append)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for name, value in dict(OPENAI_API_KEY=KEY, NO_PROXY="127.0.0.1", no_proxy="127.0.0.1").items():
        monkeypatch.setenv(name, value)
    yield stub
    stub.over.set()
    stub.shutdown()
    stub.server_close()


@pytest.fixture
def error(capfd):
    """-> the one line of an error."""
    def read():
        err = capfd.readouterr().err
        lines = [line for line in err.splitlines() if line.startswith("describe.py: ")]
        assert len(lines) == 1 and "Traceback" not in err and KEY not in err, err
        return lines[0]
    return read


@pytest.fixture(autouse=True)
def one_tokenizer(monkeypatch, made=functools.lru_cache(open_clip.get_tokenizer)):
    monkeypatch.setattr(open_clip, "get_tokenizer", made)



ALL = {key: texts(key) for key in CLASSES}
JSON, DRAFT, BODY = dumps(ALL), dumps({key: texts(key, "draft: ") for key in CLASSES}), says(ALL)[0]
ASKED_AGAIN = {  # what -> (the first reply, the wait after it)
    "429 with Retry-After": (reply(status=429, Retry_After=7), 7), "500": (reply(b"no JSON", 500), 1),
    "429 until a date": (reply(status=429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"), 1), "cut": (reply(BODY, how="cut"), 1),
    "no JSON": (reply(b"<html>busy</html>"), 1), "BOM before the body": (reply(b"\xef\xbb\xbf" + BODY), 1),
    "body in UTF-16": (reply(BODY.decode().encode("utf-16")), 1), "hang in the body": (reply(BODY, how="hang in the body"), 1)}
UNDERSTOOD = {
    "fences": f"Sure:\n```json\n{JSON}\n```\nDone.", "prose around": f"See [1] and {{x}}.\n{JSON}\nSee [1] and {{x}}.",
    "thoughts with a draft": f"<think>First {DRAFT}, no.</think>\n{JSON}", "brackets too many": JSON + "]}}",
    "thoughts whose start is in the template": f"First {DRAFT}, no.</think>\n{JSON}", "BOM before the content": "\ufeff" + JSON,
    "more texts than wanted": {k: [*v, "a third"] for k, v in ALL.items()}, "in a further object": dict(classes=ALL),
    "blanks": {k: [f" {t} \n".replace(" ", "  ") for t in v] for k, v in ALL.items()},
    "content in parts": [dict(type="text", text=JSON)], "classes too many": ALL | {"3": texts("3"), "crane": texts("x")}}
USELESS = {
    "no choices": says("", choices=[]), "an error with status 200": reply(b'{"error": {"message": "busy"}}'),
    "finish reason length": says(JSON, "length"),
    "null content": says(None), "half an answer": says(JSON[:-20]),
    "thoughts without end": says(f"<think>First {DRAFT}"), "NaN": says(JSON.replace(dumps(ALL["1"]), "NaN"))}
ONE_USELESS = {
    "missing": {k: v for k, v in ALL.items() if k != "1"}, "half a character": JSON.replace("what else thing 1 shows", "\\ud83d"),
    **{f"{bad}"[:30]: ALL | {"1": bad} for bad in (
        "one text", ["one text"], ["one text", "one  text"], ["one text", " "], ["one", 2], {"a": 1}, ["long", "plank " * 90])}}
MISBEHAVIOUR = {  # what -> (the first reply, the ids of each request, the waits)
    **{what: (first, ["012", "012"], [wait]) for what, (first, wait) in ASKED_AGAIN.items()},
    **{what: (says(content), ["012"], []) for what, content in UNDERSTOOD.items()},
    **{what: (first, ["012", "0", "1", "2"], []) for what, first in USELESS.items()},
    **{f"for class 1: {what}": (says(content), ["012", "1"], []) for what, content in ONE_USELESS.items()}}


@pytest.mark.parametrize("what", MISBEHAVIOUR)
def test_after_misbehaviour_only_what_is_missing_is_asked_again(stub, what):
    first, asked, waits = MISBEHAVIOUR[what]
    stub.script = [first]
    assert stub.generate(*["--timeout", "1"] * ("hang" in what)) == 0
    assert (stub.asked, stub.waits) == (asked, waits) and stub.is_complete()


def test_a_rate_limit_then_an_error_then_a_hang_then_success(stub):
    stub.script = [reply(status=429, Retry_After=3), reply(status=500), reply(how="hang")]
    assert stub.generate("--timeout", "1") == 0 and (stub.asked, stub.waits) == (["012"] * 4, [3, 2, 4]) and stub.is_complete()


def test_what_a_request_and_the_files_hold(stub):
    assert stub.generate("--seed", "5", "--temperature", "0.25", "--batch", "2") == 0 and stub.asked == ["01", "2"]
    for r in stub.requests:
        assert (r["path"], r["model"], r["key"]) == ("/v1/chat/completions", "writer", f"Bearer {KEY}")
        assert (r["seed"], r["temperature"], r["response_format"]) == (5, 0.25, {"type": "json_object"})
        assert [m["role"] for m in r["messages"]] == ["user"] and describe.STYLES["core"] in r["messages"][0]["content"]
    about = json.loads(stub.out.read_text(encoding="utf-8"))["about"]
    assert (about["model"], about["seed"], about["temperature"]) == ("writer", 5, 0.25) and "a language model" in about["source"]
    raw = [json.loads(line) for line in (stub.folder / "o.json.raw.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["asked"], list(json.loads(line["said"]))) for line in raw] == [(["0", "1"], ["0", "1"]), (["2"], ["2"])]


def test_response_format_is_not_sent_again_to_a_server_that_does_not_know_it(stub):
    stub.script = [reply(status=400)]
    assert stub.generate("--batch", "1") == 0 and stub.asked == ["0", "0", "1", "2"] and stub.waits == []
    assert ["response_format" in r for r in stub.requests] == [True, False, False, False]


@pytest.mark.parametrize("status, requests, said", [
    (401, 1, "OPENAI_API_KEY"), (403, 1, "OPENAI_API_KEY"), (422, 1, "status 422"), (400, 2, "status 400"), (500, 6, "after 6")])
def test_a_refusal_is_one_line_without_the_key_or_a_retry_and_costs_no_answer(stub, error, status, requests, said):
    stub.script = [good, *[reply(dumps({"error": {"message": f"no: {KEY}"}}).encode(), status)] * 50]
    assert stub.generate("--batch", "1") == 2
    line = error()
    assert said in line and "writer" in line and stub.url in line
    assert stub.asked == ["0"] + ["1"] * requests and stub.waits == [1, 2, 4, 8, 16] * (status == 500)
    assert list(stub.written()) == ["0"]
    assert not [file for file in stub.folder.iterdir() if KEY in file.read_text(encoding="utf-8")]


@pytest.mark.parametrize("key", [f"{KEY}\n", f"{KEY}…"])
def test_a_key_copied_with_too_much_is_mended_or_refused_but_never_printed(stub, capfd, key, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    code, printed = stub.generate(), "".join(capfd.readouterr())
    assert (KEY in printed, stub.waits) == (False, []), printed
    assert (code, [r["key"] for r in stub.requests]) == (0, [f"Bearer {KEY}"]) or code == 2 and "OPENAI_API_KEY" in printed


def test_without_a_key_the_token_of_a_hugging_face_login_stays_here(stub, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert huggingface_hub.get_token() == "hf_secret"  # what the client falls back on
    assert stub.generate() == 0 and [r["key"] for r in stub.requests] == ["Bearer none"]


@pytest.mark.parametrize("url, said", [([], "HF_TOKEN"), (["--base-url", "127.0.0.1:11434/v1"], "--base-url")])
def test_no_token_or_a_url_without_http_is_named_at_once(stub, error, monkeypatch, url, said):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert describe.main(stub.argv(*url)) == 2 and said in error() and stub.waits == []


def test_classes_without_an_answer_are_named_and_the_others_are_on_disk(stub, error):
    stub.script = [lambda ids: says({key: texts(key) for key in ids if key != "1"})] * 3
    assert stub.generate() == 2
    assert "for 1 " in error() and stub.asked == ["012", "1", "1"] and list(stub.written()) == ["0", "2"]
    assert stub.generate() == 0 and stub.asked[3:] == ["1"] and stub.is_complete()


def test_each_answer_is_on_disk_before_the_next_request_so_that_killed_after_three_of_five_two_are_left(stub):
    def kill(ids):
        process.kill()
        return reply(status=500)

    stub.want(FIVE)
    stub.script, argv = [good] * 3 + [kill], stub.argv("--batch", "1", "--base-url", stub.url)
    process = subprocess.Popen([sys.executable, describe.ROOT / "describe.py", *argv], stderr=subprocess.DEVNULL)
    assert process.wait(60) not in (0, 1, 2) and stub.asked == list("badc") and list(stub.written()) == list("bad")
    assert stub.generate("--batch", "1") == 0 and stub.asked[4:] == ["c", "e"] and stub.is_complete()
    assert ["".join(r["on_disk"]) for r in stub.requests] == ["", "b", "ba", "bad", "bad", "badc"]


@pytest.mark.parametrize("what", ["--llm other", "--style context", "--per-class 3", "half", "authors"])
def test_a_file_from_another_model_or_prompt_is_refused_and_unchanged(stub, error, what):
    assert stub.generate() == 0
    if not what.startswith("--"):
        stub.out.write_text(stub.out.read_text(encoding="utf-8")[:-30] if what == "half" else '{"0": "a"}', encoding="utf-8")
    before = stub.out.read_bytes()
    assert stub.generate(*what.split() * what.startswith("--")) == 2
    assert "--out" in error() and stub.out.read_bytes() == before and len(stub.requests) == 1


def test_a_place_that_cannot_be_written_is_said_before_the_first_request(stub, error):
    (stub.folder / "o.json.raw.jsonl").mkdir()
    assert stub.generate() == 2 and "o.json" in error() and stub.requests == []



FORM = {"classes": {k: {"name": v, "descriptions": ["x"]} for k, v in CLASSES.items()}}
SAME = {name: name for name in CLASSES.values()}
CONTENTS = {"lines": ("\n".join(SAME), SAME), "CRLF": ("\r\n\r\n".join(SAME) + "\r\n", SAME), "object": (dumps(CLASSES), CLASSES),
            "tabs": ("".join(f"{k}\t {v} \n" for k, v in CLASSES.items()), CLASSES), "list": (dumps([*SAME]), SAME),
            "descriptions": (dumps(FORM), CLASSES), "authors": (dumps({name: ["x", "y"] for name in SAME}), SAME)}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("form", CONTENTS)
def test_classes_are_read_from(tmp_path, form, encoding):
    content, classes = CONTENTS[form]
    (tmp_path / "c").write_bytes(content.encode(encoding))
    assert list(describe.read_classes(path=tmp_path / "c").items()) == list(classes.items())


@pytest.mark.parametrize("content", [
    "crane\ncrane\nski", "0\ta\n0\tb\n1\tc", '["crane", "crane", "ski"]', '{"0": "a", "0": "b", "1": "c"}', "", "crane",
    "cr\xe4n\nski", '{"0":\n"crane",\n"1":', '{"classes":\n["crane",\n"ski"]}'])
def test_classes_twice_or_none_or_half_a_file_are_refused(stub, error, content):
    (stub.folder / "c.txt").write_bytes(content.encode("latin-1"))
    assert stub.generate() == 2 and "c.txt" in error() and stub.requests == []



GOOD = {"0": dict(name="crane", descriptions=["long grey neck over thin stilts", "red cap and pale plumes"]),
        "1": dict(name="sea lion", descriptions=["sleek brown body with broad flippers", "small ear flaps and long whiskers"]),
        "2": dict(name="Günther's dik-dik", descriptions=["tiny antelope with a long snout", "spiky horns between large ears"])}
LONG = "broad flat paddle of pale wood whose edge is bound with dark leather strips and six round brass nails"
RAW = dumps(GOOD)


def one(*own, key="1", file=GOOD, **entry):
    """A file, with other texts, or whatever else, for one class."""
    return file | {key: file[key] | (dict(descriptions=list(own)) if own else {}) | entry}


PLANTED = {  # fault -> (content, exit code, its kind or "", its class, words beside it)
    "none": (GOOD, 0, "", "", ""),
    "missing": ({k: v for k, v in GOOD.items() if k != "2"}, 1, "missing", "2", "dik-dik"),
    "extra": (GOOD | {"9": dict(name="ski", descriptions=["two planks"])}, 1, "extra", "9", ""),
    "repeated key": (RAW.replace('"2": {', '"1": {"descriptions": ["a"]}, "2": {'), 1, "repeated key", "1", "2 times"),
    "equal names": (one(name="Crane "), 1, "equal names", "1", "of 0"),
    "by key and by name": (GOOD | {"crane": dict(descriptions=["a plume"])}, 1, "equal names", "crane", "of 0"),
    "text of another class": (one("Long GREY neck over thin stilts"), 1, "equal texts", "1", "of 0"),
    "text twice in a class": (one("a fin", "a fin"), 1, "equal texts", "1", "a fin"),
    "text twice but for capitals": (one("a fin", "A  fin"), 1, "equal texts", "1", "fin"),
    "too long": (one("plank " * 90), 1, "too long", "1", "92 tokens"),
    "one token too long": (one("plank " * 76), 1, "too long", "1", "78 tokens"),
    "just not too long": (one("plank " * 75), 0, "", "", ""),
    "class name": (one("two Cranes in steel", key="0"), 0, "class name", "0", "crane"),
    "class name in a word": (one("a cranelike or supercrane beak", key="0"), 0, "", "", ""),
    "context word": (one("a shy shape in the Forest"), 0, "context word", "1", "'forest'"),
    "near-duplicate": (one(LONG, file=one(LONG.replace("brass", "iron"), key="2")), 1, "near-duplicate", "1", "and 2"),
    "two words of 15 differ": (one(LONG, file=one(LONG.replace("brass", "big").replace("dark", "red"), key="2")), 0, "", "", ""),
    **{codec: (RAW.encode(codec), 1, "encoding", "-", word) for codec, word in {
        "utf-8-sig": "byte-order mark", "utf-16": "UTF-16", "latin-1": "UTF-8"}.items()},
    **{f"no JSON: {text}"[:20]: (text, 1, "JSON", "-", "") for text in (RAW[:-9], "[" * 100000, "[1, 2]", '{"classes": 3}')},
    **{f"no texts: {bad}": (one(descriptions=bad), 1, "no texts", "1", "") for bad in ([], 7, ["a", 7], ["a", " "], {})}}


@pytest.mark.parametrize("fault", PLANTED)
def test_check_finds(tmp_path, capsys, fault):
    content, code, kind, key, words = PLANTED[fault]
    content = dumps(dict(about={}, classes=content)) if isinstance(content, dict) else content
    (tmp_path / "d.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "c.json").write_text(json.dumps(CLASSES))
    assert describe.main(["--check", str(tmp_path / "d.json"), "--classes", str(tmp_path / "c.json")]) == code
    *rows, last = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(("| ---", "|  |"))]
    found = [row[2:-2].split(" | ") for row in rows]
    assert {(mark, k) for mark, k, *_ in found} == ({("stop" if code else "look", kind)} if kind else set()), found
    assert not kind or any(of == key and words in what for _, _, of, what in found), found
    assert f": {len(rows) * code} faults that" in last and f", {len(rows) * (1 - code)} to look at" in last



FMOW = """airport airport_hangar airport_terminal amusement_park aquaculture archaeological_site barn border_checkpoint
burial_site car_dealership construction_site crop_field dam debris_or_rubble educational_institution electric_substation
factory_or_powerplant fire_station flooded_road fountain gas_station golf_course ground_transportation_station helipad hospital
impoverished_settlement interchange lake_or_pond lighthouse military_facility multi-unit_residential nuclear_powerplant
office_building oil_or_gas_facility park parking_lot_or_garage place_of_worship police_station port prison race_track
railway_bridge recreational_facility road_bridge runway shipyard shopping_mall single-unit_residential smokestack solar_farm
space_facility stadium storage_tank surface_mine swimming_pool toll_booth tower tunnel_opening waste_disposal
water_treatment_facility wind_farm zoo""".split()
WNIDS = (importlib.resources.files("timm") / "data" / "_info" / "imagenet_synsets.txt").read_text().split()
SHIPPED = {"toy": list(world.THINGS), "cifar10": "airplane automobile bird cat deer dog frog horse ship truck".split(),
           "waterbirds": ["landbird", "waterbird"], "fmow": FMOW, "iwildcam": [str(y) for y in range(182)], "imagenet": WNIDS}


@pytest.mark.parametrize("name, n", dict(zip([*SHIPPED, "toy.context", "toy.shuffled"], [8, 10, 2, 62, 182, 1000, 8, 8])).items())
def test_shipped_descriptions_are_whole_and_pass_the_check(name, n, capsys):
    path, keys, tokenizer = f"descriptions/{name}.json", SHIPPED[name.split(".")[0]], open_clip.get_tokenizer("ViT-B-32")
    content = json.loads((describe.ROOT / path).read_text(encoding="utf-8"))
    names, of_class = describe.load_names_and_descriptions(path, {key: key for key in keys})
    flat = [" ".join(text.lower().split()) for own in of_class for text in own]
    assert list(content["classes"]) == keys and len({name.lower() for name in names.values()}) == n
    assert min(map(len, of_class)) >= 2 and len({*flat}) == len(flat)
    assert max(len(tokenizer.encode(text)) + 2 for text in flat) < 60
    assert "written by a language model" in content["about"]["source"] and "not the authors'" in content["about"]["source"]
    assert describe.main(["--check", path]) == 0
    out = capsys.readouterr().out
    assert f"{path}: 0 faults" in out and "classes not compared" not in out



def table(a, b):
    return {what: values for what, *values in (line[2:-2].split(" | ") for line in describe.compare(a, b)[2:])}


def test_compare_gives_the_table_made_by_hand(tmp_path):
    (tmp_path / "a").write_text('{"x": "red round ball", "y": ["blue square", "green tall box"]}')
    (tmp_path / "b").write_text(dumps({"classes": {"y": {"name": "square", "descriptions": "blue square in the forest"},
                                                   "x": {"descriptions": ["red flat plate"]}}}))
    assert table(tmp_path / "a", tmp_path / "b") == {  # start and end of a text are tokens too
        "classes": ["2", "2"], "texts": ["3", "2"], "words a text": ["2.67", "4"], "tokens a text": ["4.67", "6"],
        "longest, in tokens": ["5", "7"], "context words": ["0", "1"], "class names in texts": ["0", "1"],
        "words shared by both, of a class": ["0.267", "0.267"]}  # x: 1 of 5, y: 2 of 6, as "in" and "the" do not count
    (tmp_path / "b").write_text('{"x": "red ball", "z": "blue box"}')  # other classes: no words of a class to share
    assert [*table(tmp_path / "a", tmp_path / "b")][-1] == "class names in texts"


def test_core_texts_hear_the_thing_and_context_texts_the_place(capsys):
    rows = table("descriptions/toy.json", "descriptions/toy.context.json")
    (core_thing, context_thing), (core_place, context_place) = (
        map(float, rows[f"toy: change of affinity, {what} swapped"]) for what in ("foreground", "background"))
    assert core_thing > core_place and context_place > core_place and core_thing > context_thing
    assert describe.main(["--compare", "descriptions/toy.json", "none.json"]) == 2 and "none.json" in capsys.readouterr().err
