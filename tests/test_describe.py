"""Descriptions written by a language model, through a server that misbehaves."""

import json
import subprocess
import sys

import huggingface_hub
import pytest
from conftest import ALL, IDS, KEY, ROOT, dumps, good, reply, says, texts

import describe

FIVE = {key: f"thing {key}" for key in "badce"}  # in another order than the alphabet's


@pytest.fixture
def error(capfd):
    """-> the one line of an error."""

    def read():
        err = capfd.readouterr().err
        lines = [line for line in err.splitlines() if line.startswith("describe.py: ")]
        assert len(lines) == 1 and "Traceback" not in err and KEY not in err, err
        return lines[0]

    return read


JSON, DRAFT, BODY = dumps(ALL), dumps({key: texts(key, "draft: ") for key in IDS}), says(ALL)[0]
ASKED_AGAIN = {  # what -> (the first reply, the wait after it)
    "429 with Retry-After": (reply(status=429, Retry_After=7), 7),
    "500": (reply(b"no JSON", 500), 1),
    "429 until a date": (reply(status=429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"), 1),
    "cut": (reply(BODY, how="cut"), 1),
    "no JSON": (reply(b"<html>busy</html>"), 1),
    "BOM before the body": (reply(b"\xef\xbb\xbf" + BODY), 1),
    "body in UTF-16": (reply(BODY.decode().encode("utf-16")), 1),
    "hang in the body": (reply(BODY, how="hang in the body"), 1),
}
UNDERSTOOD = {
    "fences": f"Sure:\n```json\n{JSON}\n```\nDone.",
    "prose around": f"See [1] and {{x}}.\n{JSON}\nSee [1] and {{x}}.",
    "thoughts with a draft": f"<think>First {DRAFT}, no.</think>\n{JSON}",
    "brackets too many": JSON + "]}}",
    "thoughts whose start is in the template": f"First {DRAFT}, no.</think>\n{JSON}",
    "BOM before the content": "\ufeff" + JSON,
    "more texts than wanted": {k: [*v, "a third"] for k, v in ALL.items()},
    "in a further object": dict(classes=ALL),
    "blanks": {k: [f" {t} \n".replace(" ", "  ") for t in v] for k, v in ALL.items()},
    "content in parts": [dict(type="text", text=JSON)],
    "classes too many": ALL | {"3": texts("3"), "crane": texts("x")},
}
USELESS = {
    "no choices": says("", choices=[]),
    "an error with status 200": reply(b'{"error": {"message": "busy"}}'),
    "finish reason length": says(JSON, "length"),
    "null content": says(None),
    "half an answer": says(JSON[:-20]),
    "thoughts without end": says(f"<think>First {DRAFT}"),
    "NaN": says(JSON.replace(dumps(ALL["1"]), "NaN")),
}
NOT_TWO_TEXTS = ("one text", ["one text"], ["one text", "one  text"], ["one text", " "], ["one", 2], {"a": 1})
ONE_USELESS = {
    "missing": {k: v for k, v in ALL.items() if k != "1"},
    "half a character": JSON.replace("what else thing 1 shows", "\\ud83d"),
    "too long": ALL | {"1": ["long", "plank " * 90]},
    **{str(bad): ALL | {"1": bad} for bad in NOT_TWO_TEXTS},
}
MISBEHAVIOUR = {  # what -> (the first reply, the ids of each request, the waits)
    **{what: (first, ["012", "012"], [wait]) for what, (first, wait) in ASKED_AGAIN.items()},
    **{what: (says(content), ["012"], []) for what, content in UNDERSTOOD.items()},
    **{what: (first, ["012", "0", "1", "2"], []) for what, first in USELESS.items()},
    **{f"for class 1: {what}": (says(content), ["012", "1"], []) for what, content in ONE_USELESS.items()},
}


@pytest.mark.parametrize("what", MISBEHAVIOUR)
def test_after_misbehaviour_only_what_is_missing_is_asked_again(stub, what):
    first, asked, waits = MISBEHAVIOUR[what]
    stub.script = [first]
    assert stub.generate(*["--timeout", "1"] * ("hang" in what)) == 0
    assert (stub.asked, stub.waits) == (asked, waits) and stub.is_complete()


def test_a_rate_limit_then_an_error_then_a_hang_then_success(stub):
    stub.script = [reply(status=429, Retry_After=3), reply(status=500), reply(how="hang")]
    assert stub.generate("--timeout", "1") == 0 and stub.is_complete()
    assert (stub.asked, stub.waits) == (["012"] * 4, [3, 2, 4])


def test_what_a_request_and_the_files_hold(stub):
    assert stub.generate("--seed", "5", "--temperature", "0.25", "--batch", "2") == 0
    assert stub.asked == ["01", "2"]
    for r in stub.requests:
        assert (r["path"], r["model"], r["key"]) == ("/v1/chat/completions", "writer", f"Bearer {KEY}")
        assert (r["seed"], r["temperature"], r["response_format"]) == (5, 0.25, {"type": "json_object"})
        [message] = r["messages"]
        assert message["role"] == "user" and describe.STYLES["core"] in message["content"]
    about = json.loads(stub.out.read_text(encoding="utf-8"))["about"]
    assert (about["model"], about["seed"], about["temperature"]) == ("writer", 5, 0.25)
    assert "a language model" in about["source"]
    raw = (stub.folder / "o.json.raw.jsonl").read_text(encoding="utf-8").splitlines()
    said = [(line["asked"], list(json.loads(line["said"]))) for line in map(json.loads, raw)]
    assert said == [(["0", "1"], ["0", "1"]), (["2"], ["2"])]


def test_response_format_is_not_sent_again_to_a_server_that_does_not_know_it(stub):
    stub.script = [reply(status=400)]
    assert stub.generate("--batch", "1") == 0 and stub.asked == ["0", "0", "1", "2"] and stub.waits == []
    assert ["response_format" in r for r in stub.requests] == [True, False, False, False]


@pytest.mark.parametrize(
    "status, requests, said",
    [
        (401, 1, "OPENAI_API_KEY"),
        (403, 1, "OPENAI_API_KEY"),
        (422, 1, "status 422"),
        (400, 2, "status 400"),
        (500, 6, "after 6"),
    ],
)
def test_a_refusal_is_one_line_without_the_key_or_a_retry_and_costs_no_answer(
    stub, error, status, requests, said
):
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
    mended = (code, [r["key"] for r in stub.requests]) == (0, [f"Bearer {KEY}"])
    assert mended or (code == 2 and "OPENAI_API_KEY" in printed)


def test_without_a_key_the_token_of_a_hugging_face_login_stays_here(stub, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert huggingface_hub.get_token() == "hf_secret"  # what the client falls back on
    assert stub.generate() == 0 and [r["key"] for r in stub.requests] == ["Bearer none"]


@pytest.mark.parametrize(
    "url, said", [([], "HF_TOKEN"), (["--base-url", "127.0.0.1:11434/v1"], "--base-url")]
)
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
    process = subprocess.Popen([sys.executable, ROOT / "describe.py", *argv], stderr=subprocess.DEVNULL)
    assert process.wait(120) not in (0, 1, 2)
    assert stub.asked == list("badc") and list(stub.written()) == list("bad")
    assert stub.generate("--batch", "1") == 0 and stub.asked[4:] == ["c", "e"] and stub.is_complete()
    assert ["".join(r["on_disk"]) for r in stub.requests] == ["", "b", "ba", "bad", "bad", "badc"]


@pytest.mark.parametrize("what", ["--llm other", "--style context", "--per-class 3", "half", "authors"])
def test_a_file_from_another_model_or_prompt_is_refused_and_unchanged(stub, error, what):
    assert stub.generate() == 0
    if not what.startswith("--"):
        whole = stub.out.read_text(encoding="utf-8")
        stub.out.write_text(whole[:-30] if what == "half" else '{"0": "a"}', encoding="utf-8")
    before = stub.out.read_bytes()
    assert stub.generate(*what.split() * what.startswith("--")) == 2
    assert "--out" in error() and stub.out.read_bytes() == before and len(stub.requests) == 1


def test_a_place_that_cannot_be_written_is_said_before_the_first_request(stub, error):
    (stub.folder / "o.json.raw.jsonl").mkdir()
    assert stub.generate() == 2 and "o.json" in error() and stub.requests == []
