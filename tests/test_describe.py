"""Descriptions written by a language model, through a server that misbehaves."""

import email.utils
import itertools
import json
import subprocess
import sys
import time

import huggingface_hub
import pytest
from conftest import ALL, IDS, KEY, ROOT, dumps, good, reply, says, shipped, texts

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
    "429 with fractions of a second": (reply(status=429, Retry_After="7.66"), 7.66),
    "429 for an hour": (reply(status=429, Retry_After=3600), 120),
    "429, a rate with advice on billing": (
        reply(b'{"error": {"message": "3 a minute. Please try again in 20s. Add a card: x/billing"}}', 429),
        1,
    ),
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
    "a comma too many": JSON.replace("]}", "],}").replace('"]', '",]'),
    "a line break in a text": JSON.replace("the first look", "the first\nlook"),
    "id: name for a key": {f"{key}: {name}": ALL[key] for key, name in IDS.items()},
    "id. name for a key": {f"{key}. {name}": ALL[key] for key, name in IDS.items()},
    "id (name) for a key": {f"{key} ({name})": ALL[key] for key, name in IDS.items()},
    "id - name for a key": {f"{key} - {name}": ALL[key] for key, name in IDS.items()},
    "blanks in a key": {f" {key} ": ALL[key] for key in IDS},
    "thoughts in other tags": f"<thinking>First {DRAFT}</thinking><thought>or {DRAFT}</thought>\n{JSON}",
}
USELESS = {
    "no choices": says("", choices=[]),
    "an error with status 200": reply(b'{"error": {"message": "busy"}}'),
    "null content": says(None),
    "thoughts without end": says(f"<think>First {DRAFT}"),
}
NOT_TWO_TEXTS = ("one text", ["one text"], ["one text", "one  text"], ["one text", " "], ["one", 2], {"a": 1})
ONE_USELESS = {
    "missing": {k: v for k, v in ALL.items() if k != "1"},
    "NaN": JSON.replace(dumps(ALL["1"]), "NaN"),
    "two answers": {k: v for k, v in ALL.items() if k != "1"} | {"1: a": texts("1"), "1: b": texts("2")},
    "in another script": ALL | {"1": ["青い鳥の長いくちばし", "what else thing 1 shows"]},
    "half a character": JSON.replace("what else thing 1 shows", "\\ud83d"),
    "too long": ALL | {"1": ["long", "plank " * 90]},
    **{str(bad): ALL | {"1": bad} for bad in NOT_TWO_TEXTS},
}
MISBEHAVIOUR = {  # what -> (the first reply, the ids of each request, the waits)
    **{what: (first, ["012", "012"], [wait]) for what, (first, wait) in ASKED_AGAIN.items()},
    **{what: (says(content), ["012"], []) for what, content in UNDERSTOOD.items()},
    "whole, then blanks up to the limit": (says(JSON + " \n" * 500, "length"), ["012"], []),
    "cut in the last class": (says(JSON[:-20], "length"), ["012", "2"], []),
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


def refuses(*fields, status=400, say="Unsupported parameter: '{}'."):
    """A server that names the first of these fields that a request has, and refuses it."""

    def order(ids):
        sent = STUB[0].requests[-1]
        named = [field for field in fields if field in sent]
        STUB[0].script.append(order)
        return refusal(say.format(named[0]), status) if named else good(ids)

    return order


STUB = []  # the one that is running


def refusal(said, status=400, **more):
    return reply(dumps({"error": {"message": said, **more}}).encode(), status)


SAYS = {
    "seed": "Unsupported parameter: '{}'.",
    "temperature": "`{}` does not support 0.7 with this model.",
    "response_format": "This {} type is unavailable now",
    "max_tokens": "'{}' is not supported with this model. Use 'max_completion_tokens' instead.",
}


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize("field", SAYS)
def test_a_field_that_the_server_names_is_left_out_or_renamed_once_and_said(stub, capfd, field, status):
    STUB[:] = [stub]
    stub.script = [refuses(field, status=status, say=SAYS[field])]
    assert stub.generate("--batch", "1") == 0 and stub.is_complete() and stub.waits == []
    assert stub.asked == ["0", "0", "1", "2"]
    assert [field in r for r in stub.requests] == [True, False, False, False]
    renamed = ["max_completion_tokens" in r for r in stub.requests[1:]]
    assert renamed == [field == "max_tokens"] * 3
    err = capfd.readouterr().err
    assert f"refuses {field} ({SAYS[field].format(field)}): asked again without" in err


def test_a_server_that_knows_none_of_the_fields_is_asked_without_all_of_them(stub):
    STUB[:] = [stub]
    said = '"loc": ["body", "{}"], "msg": "Extra inputs are not permitted"'
    fields = ("seed", "temperature", "response_format", "max_tokens")
    stub.script = [refuses(*fields, status=422, say=said)]
    assert stub.generate() == 0 and stub.is_complete() and stub.asked == ["012"] * 5 and stub.waits == []
    assert not any(field in stub.requests[-1] for field in (*fields, "max_completion_tokens"))


def test_a_field_that_is_refused_when_renamed_too_is_left_out(stub):
    stub.script = [
        refusal(SAYS["max_tokens"].format("max_tokens")),
        refusal("max_completion_tokens: too many"),
    ]
    assert stub.generate() == 0
    assert ["max_completion_tokens" in r for r in stub.requests] == [False, True, False]
    assert "max_tokens" not in stub.requests[2]


@pytest.mark.parametrize("form", ["error", "message", "detail"])
def test_the_servers_own_words_are_shown_instead_of_a_librarys_preamble(stub, error, form):
    words = "the model writer is not on this machine; pull it first"
    body = {"error": {"message": words}} if form == "error" else {form: words}
    stub.script = [reply(dumps(body).encode(), 404)] * 9
    assert stub.generate() == 2
    line = error()
    assert line.endswith(f"{stub.url}/chat/completions refuses the request (status 404): {words}")


@pytest.mark.parametrize(
    "base, asked",
    [
        ("/v1", "/v1/chat/completions"),
        ("/v1/", "/v1/chat/completions"),
        ("/v1beta/openai/", "/v1beta/openai/chat/completions"),
        ("/api/paas/v4", "/api/paas/v4/chat/completions"),
        ("/gate/chat/completions", "/gate/chat/completions"),
        ("", "/v1/chat/completions"),
    ],
)
def test_the_address_is_the_base_and_chat_completions_and_is_named(stub, error, base, asked):
    url = stub.url.removesuffix("/v1")
    assert describe.main(stub.argv("--base-url", url + base)) == 0
    assert [r["path"] for r in stub.requests] == [asked]
    stub.out.unlink()
    stub.script = [reply(status=404)] * 9
    assert describe.main(stub.argv("--base-url", url + base)) == 2 and f"{url}{asked} " in error()


def test_a_date_to_wait_for_is_waited_for(stub):
    later = email.utils.formatdate(time.time() + 9, usegmt=True)
    stub.script = [reply(status=429, Retry_After=later)]
    assert stub.generate() == 0 and 6 < stub.waits[0] < 10


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="needs another time zone")
@pytest.mark.parametrize("form", ["%a, %d %b %Y %H:%M:%S -0000", "%a %b %d %H:%M:%S %Y"])
def test_a_date_without_a_zone_was_taken_for_the_local_one(stub, monkeypatch, form):
    try:
        with monkeypatch.context() as patch:
            patch.setenv("TZ", "EST+5")
            time.tzset()
            stub.script = [reply(status=429, Retry_After=time.strftime(form, time.gmtime(time.time() + 9)))]
            assert stub.generate() == 0 and 6 < stub.waits[0] < 10
    finally:
        time.tzset()


SPENT = "You exceeded your current quota, please check your plan and billing details."


BALANCE = "Insufficient balance. Please recharge."


@pytest.mark.parametrize(
    "said, more",
    [
        ("no", dict(code="insufficient_quota")),
        ("no", dict(code=429, type="insufficient_quota")),
        *((words, {}) for words in (SPENT, BALANCE, "Monthly quota exceeded", "spending limit reached")),
    ],
)
def test_a_spent_quota_was_waited_for_half_a_minute(stub, error, said, more):
    stub.script = [refusal(said, 429, **more)] * 9
    assert stub.generate() == 2 and stub.waits == [] and len(stub.requests) == 1
    assert "the quota is spent, which no waiting mends: " + said in error()


@pytest.mark.parametrize("status, said", [(401, "no such key"), (404, "no such model"), (429, SPENT)])
def test_a_refusal_that_is_a_list_was_waited_for_and_lost_its_words(stub, error, status, said):
    stub.script = [reply(dumps([{"error": {"code": status, "message": said}}]).encode(), status)] * 9
    assert stub.generate() == 2 and stub.waits == []
    line = error()
    assert line.endswith(f": {said}") and "attribute" not in line


def test_a_field_that_stands_beside_the_words_was_not_heard(stub):
    stub.script = [refusal("This value is not supported", param="temperature")]
    assert stub.generate() == 0 and stub.waits == []
    assert [sorted({"temperature", "response_format"} & r.keys()) for r in stub.requests] == [
        ["response_format", "temperature"],
        ["response_format"],
    ]


def test_a_proxy_that_cannot_be_used_was_waited_for_half_a_minute(stub, error, monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name)
    for name in ("http_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "socks5://127.0.0.1:1")
    huggingface_hub.close_session()
    try:
        assert stub.generate() == 2 and stub.waits == [] and stub.requests == []
    finally:
        huggingface_hub.close_session()
    line = error()
    assert "cannot be asked: " in line and "SOCKS" in line


@pytest.mark.parametrize(
    "order, said",
    [
        (says(JSON[:40], "length"), "cut at "),
        (says("<think>" + "so it " * 50, "length"), "thoughts took all "),
        (says(""), "an empty answer"),
        (says("I would rather not."), "2 different texts did not come"),
        (says({key: ["plank " * 90, "plank " * 91] for key in IDS}), "92 tokens, 77 fit"),
        (says({key: ["青い鳥の長いくちばし", "赤い"] for key in IDS}), "another than English"),
    ],
)
def test_why_nothing_was_usable_is_said_at_the_end_and_to_the_model(stub, error, order, said):
    stub.script = [order] * 50
    assert stub.generate() == 2
    line = error()
    assert "no usable texts for 0, 1, 2" in line and said in line
    first, second = (r["messages"][0]["content"] for r in stub.requests[:2])
    assert "could not be used" not in first
    assert said in second.split("could not be used")[1].split("Classes (id: name)")[0]
    raw = (stub.folder / "o.json.raw.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(raw[0])["said"] == json.loads(order[0])["choices"][0]["message"]["content"]


def test_thoughts_beside_the_content_that_took_all_tokens_are_told_from_a_cut(stub, error):
    message = dict(role="assistant", content="", reasoning="first, the crane " * 50)
    stub.script = [says("", choices=[dict(index=0, message=message, finish_reason="length")])] * 50
    assert stub.generate() == 2 and "thoughts took all " in error()


def test_with_strict_what_the_check_looks_at_is_asked_again_and_kept_if_it_stays(stub):
    bad = {"1": ["sleek brown body without any ears", "broad flippers and long stiff whiskers"]}
    stub.script = [says(ALL | bad)] * 9
    assert stub.generate() == 0 and stub.asked == ["012"]
    stub.out.unlink()
    fine = {
        key: [f"sleek {color} body with two flippers", f"long {color} neck and a red cap"]
        for key, color in zip(IDS, ("brown", "gray", "green"))
    }
    stub.script = [says(fine | bad)] * 3
    assert stub.generate("--strict") == 0 and stub.asked[1:] == ["012", "1", "1"]
    assert "negation: 'without'" in stub.requests[2]["messages"][0]["content"]
    assert stub.written()["1"]["descriptions"] == bad["1"] and len(stub.written()) == 3


def test_the_model_is_told_the_domain_and_which_sense_of_a_name_is_meant(stub):
    lines = "0\tcrane\ta machine that lifts loads\n1\tsea lion\n2\tdik-dik\tMadoqua guentheri\n"
    (stub.folder / "c.txt").write_text(lines)
    assert stub.generate("--domain", "photos of a harbor at night") == 0
    [said] = [r["messages"][0]["content"] for r in stub.requests]
    assert "The pictures: photos of a harbor at night." in said
    assert said.endswith(
        "\n0: crane (a machine that lifts loads)\n1: sea lion\n2: dik-dik (Madoqua guentheri)"
    )
    assert stub.written()["0"]["gloss"] == "a machine that lifts loads" and "gloss" not in stub.written()["1"]


@pytest.mark.parametrize("dataset", ["fmow", "iwildcam", "imagenet", "cifar10", "waterbirds"])
def test_the_domain_of_a_data_set_and_an_example_are_in_its_prompt(stub, dataset):
    stub.script = [refusal("stop here", 404)]
    argv = ["--dataset", dataset, "--llm", "writer", "--base-url", stub.url, "--out", str(stub.out)]
    assert describe.main(argv) == 2
    [said] = [r["messages"][0]["content"] for r in stub.requests]
    domain = describe.RECIPES[dataset]["domain"]
    assert f"The pictures: {domain}." in said and "Example, for a class" in said and "20 tokens" in said


def test_look_alikes_were_asked_for_far_from_each_other():
    """Of eight neighbours in the order of the file, 3 of 21 such pairs shared a request."""
    classes = describe.classes_for("iwildcam", None)
    known = {key: entry["descriptions"] for key, entry in shipped("iwildcam").items()}
    requests = describe.requests_of(classes, known, 8)
    assert sorted(key for request in requests for key in request) == sorted(classes)
    assert max(map(len, requests)) == 8
    together = {frozenset(pair) for request in requests for pair in itertools.combinations(request, 2)}
    pairs = [p.split() for p in ALIKE.split(",")]
    assert sum(frozenset(pair) in together for pair in pairs) >= 17 and len(pairs) == 21


# of iWildCam: pairs of kinds that people confuse
ALIKE = """3 148,19 174,153 181,82 178,13 89,9 86,54 55,48 96,46 134,62 64,122 123,29 133,10 87,5 149,7 144,
15 44,103 66,116 127,1 6,2 85,78 72"""


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


@pytest.mark.parametrize("other", ["crane (bird)", "crane: bird", "crane - bird", "crane. bird"])
def test_a_key_that_begins_like_another_was_taken_for_it(other):
    found = describe.parse_answer(dumps({other: ["white body"]}) + " {", ["crane", other], 1)
    assert found == {other: ["white body"]}
