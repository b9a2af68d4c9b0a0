"""Language models and servers that misbehave, and keys that stay secret."""

import pytest
from conftest import ALL, KEY, Stub, reply, says
from place import NEST, counted, one_line, within

import describe

pytestmark = pytest.mark.usefixtures("one_tokenizer")

# What a server says to every request; the classes that are on disk already stay, and no half answer is added.
ANSWERS = {
    "10 KB of nesting": (says('{"1":' * 2000), ["no usable texts for 1, 2"]),
    "a number of 5000 digits": (says('{"1": ' + "9" * 5000 + "}"), ["no usable texts"]),
    "nothing": (says(""), ["no usable texts"]),
    "a list": (says('["a", "b"]'), ["no usable texts"]),
    "other ids": (says({"one": ["a", "b"]}), ["no usable texts"]),
    "objects for texts": (says({"1": [{"text": "a"}, {"text": "b"}]}), ["no usable texts"]),
    "blanks": (says({"1": [" ", "\t"]}), ["no usable texts"]),
    "texts of 80 words": (says({"1": ["word " * 80, "word " * 81]}), ["no usable texts", "82 tokens"]),
    "half a character": (says('{"1": ["\\ud83d a", "b"]}'), ["no usable texts"]),
    "NaN for a text": (says('{"1": ["a", NaN]}'), ["no usable texts"]),
    "a refusal in prose": (says("I cannot help with {that}."), ["no usable texts"]),
    "choices of null": (says("", choices=None), ["no usable texts"]),
    "a text for choices": (says("", choices="x"), ["after 6 requests"]),
    "a number for a body": (reply(b"33"), ["after 6 requests"]),
    "a body of blanks": (reply(b"  "), ["after 6 requests"]),
    "a page of HTML": (reply(b"<html>\x1b[31m login </html>"), ["after 6 requests"]),
    "a body of brackets": (reply(NEST.encode()), ["after 6 requests"]),
    "a status 404": (reply(b"{}", 404), ["status 404"]),
    "a status 418": (reply(b"{}", 418), ["status 418"]),
    "a status 503": (reply(b"{}", 503), ["after 6 requests"]),
}


@pytest.mark.parametrize("what", ANSWERS)
@counted("LLM answers")
def test_bad_answers_end_in_one_line_and_cost_no_answer_that_was_paid_for(stub, capfd, what):
    stub.handle_error = lambda *_: None  # connections that the client gives up
    stub.script = [lambda ids: says({"0": ALL["0"]})] + [reply(b"{}", 404)]
    assert stub.generate("--batch", "1") == 2 and list(stub.written()) == ["0"]
    before, (order, said) = stub.out.read_bytes(), ANSWERS[what]
    stub.script = [order] * 50
    capfd.readouterr()
    with within(10):
        assert stub.generate() == 2
    captured = capfd.readouterr()
    one_line("describe.py", captured, ["writer", *said])
    assert stub.out.read_bytes() == before and KEY not in captured.err and "without end" not in stub.waits


@counted("security")
def test_ten_megabytes_of_an_answer_are_read_in_no_time():
    with within(3):
        assert describe.parse_answer("[" * 10_000_000, ["a"], 1) == {}
        assert describe.parse_answer("<think>" * 10**6, ["a"], 1) == {}


@pytest.mark.parametrize(
    "answer",
    ['{"a":' * 200_000, ('{"a":' * 900 + "x ") * 222, '{"\\' * 300_000],
    ids=["deep", "less deep", "escapes"],
)
@counted("security")
def test_an_answer_of_braces_is_given_up_at_once(answer):
    with within(3):
        assert describe.parse_answer(answer, ["a"], 1) == {}


@pytest.mark.parametrize(
    "key", [f"{KEY}\nmore", f"{KEY}\r\nX: y", f"{KEY}\x1b[31m", f"Bearer {KEY}", f"'{KEY}\\\x01'"]
)
@counted("API key")
def test_a_key_that_is_no_header_is_in_no_message_and_no_file(stub, capfd, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    code = stub.generate()
    captured = capfd.readouterr()
    assert code in (0, 2) and KEY not in captured.out + captured.err
    assert not [path for path in stub.folder.iterdir() if KEY in path.read_text(encoding="utf-8")]


@counted("API key")
def test_a_key_is_not_sent_on_to_where_a_server_points(stub, tmp_path):
    (tmp_path / "other").mkdir()
    other = Stub(tmp_path / "other")
    try:
        stub.script = [reply(status=307, Location=f"{other.url}/chat/completions")] * 50
        assert stub.generate() in (0, 2)
        assert stub.requests and not [r for r in other.requests if KEY in str(r)]
    finally:
        other.over.set()
        other.shutdown()
        other.server_close()


@pytest.mark.parametrize("password", ["sesame", "se/sesame", "se@sesame", "#sesame"])
@counted("API key")
def test_a_password_in_the_address_is_in_no_message(stub, capfd, password):
    stub.script = [reply(status=404)] * 9
    assert describe.main(stub.argv("--base-url", stub.url.replace("://", f"://me:{password}@"))) == 2
    assert "sesame" not in capfd.readouterr().err
