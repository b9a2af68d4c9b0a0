"""A language model behind a chat endpoint: asking, waiting, and reading what it says, however it says it."""

import email.utils
import itertools
import json
import os
import re
import time

from support.errors import BadInput, log

LONGEST_WAIT = 120  # seconds
MAY_PASS = (408, 409, 425, 429)  # and 500 and above: another request may go well
NO_WAITING_MENDS = (
    "UnsupportedProtocol",
    "InvalidURL",
    "LocalProtocolError",
    "ImportError",
    "ModuleNotFoundError",
)
SPENT = r"^(?!.*(try again|retry) in [\d.]+ ?m?s).*("  # else it is a rate, not a quota
SPENT += r"insufficient.(quota|balance|credit|fund)|(current|month\w*|daily) quota|quota exceeded|billing"
SPENT += r"|out of credits|credit balance|(spend\w*|usage) limit|payment required)"


class Llm:
    """A chat endpoint that speaks OpenAI's protocol. The key comes from the environment."""

    def __init__(self, model, base_url=None, seed=0, temperature=0.7, timeout=300.0, retries=6):
        from huggingface_hub import InferenceClient  # here, as nothing else needs it

        self.variable = "OPENAI_API_KEY" if base_url else "HF_TOKEN"
        key = os.environ.get(self.variable, "").strip()
        # a key without anything that is escaped in some message is found there, and hidden
        if re.search(r"""[^!-~]|["'\\<>&]""", key) or not (base_url or key):
            or_url = "" if base_url else " or --base-url URL"
            no_key = f"no key in {self.variable}; allowed: one without blanks or quotes{or_url}"
            raise BadInput(f"--llm {model}: {no_key}")
        # a stray / or # in a password would end the address there
        if base_url and not re.fullmatch(r"https?://([^\s/?#@]*@)?[^\s/?#@]+(/[^\s?#@]*)?", base_url):
            raise BadInput(f"--base-url {base_url.rpartition('@')[2]}: allowed: http(s)://..., no ? or #")
        self.key = key or "none"  # with None, the token of a Hugging Face login would be sent to any endpoint
        address = base_url and address_of(base_url)
        self.client = InferenceClient(base_url=address, api_key=self.key, timeout=timeout)
        self.model, self.where, self.retries = model, self.hidden(address or "Hugging Face"), retries
        # what a server may refuse by its name, and is then asked without; the limit's value is ask()'s
        self.fields = {"seed": seed, "temperature": temperature, "response_format": {"type": "json_object"}}
        self.fields["max_tokens"] = None

    def hidden(self, text):
        """A text without the key, and without a name and password in an address."""
        return re.sub(r"//[^/@\s]*@", "//***@", text.replace(self.key, "***"))

    def ask(self, prompt, words):
        """-> (text, why it breaks off or is empty, or ""). Asks again where that helps. Raises BadInput."""
        messages, room, failures = [{"role": "user", "content": prompt}], 4 * words + 2000, 0
        while True:
            fields = {name: room if value is None else value for name, value in self.fields.items()}
            try:
                said = self.client.chat_completion(messages, model=self.model, extra_body=fields)
                return read_choice(said, room)
            except Exception as e:  # the client, its HTTP library and a body that is no JSON raise many kinds
                response = getattr(e, "response", None) or getattr(e.__context__, "response", None)
                status = getattr(response, "status_code", None)
                said = " ".join(self.hidden(words_of_server(response) or str(e)).split())[:300]
                if self.goes_without(status, said):
                    continue
                failures += 1
                self.give_up(e, status, said, failures)
                time.sleep(wait_of(response) or 2 ** (failures - 1))

    def goes_without(self, status, said):
        """Whether a refusal names fields that may be left out, or renamed: each once."""
        if status not in (400, 422):
            return False
        named = [field for field in self.fields if re.search(rf"\b{field}\b", said)]
        if not named and status == 400 and not re.search(r"\bmax_\w+", said):
            named = [field for field in self.fields if field == "response_format"]  # the prompt says the same
        for field in named:
            del self.fields[field]
        if "max_tokens" in named and "max_completion_tokens" in said:
            self.fields["max_completion_tokens"] = None
        if named:
            log(f"{self.where} refuses {', '.join(named)} ({said}): asked again without")
        return bool(named)

    def give_up(self, e, status, said, failures):
        """Raises BadInput where another request would not help."""
        if status in (401, 403):
            what = f"{self.where} refuses the key in {self.variable} (status {status}): {said}"
        elif status is not None and status not in MAY_PASS and status < 500:
            what = f"{self.where} refuses the request (status {status}): {said}"
        elif status == 429 and re.search(SPENT, said, re.IGNORECASE):
            what = f"{self.where} says that the quota is spent, which no waiting mends: {said}"
        elif any(kind.__name__ in NO_WAITING_MENDS for kind in type(e).__mro__):
            what = f"{self.where} cannot be asked: {said}"
        elif failures == self.retries:
            what = f"no answer from {self.where} after {self.retries} requests: {said}"
        else:
            return
        raise BadInput(f"--llm {self.model}: {what}") from None


def address_of(base_url):
    """Where to ask: /chat/completions behind the base, as OpenAI's client does; a bare host has /v1 there."""
    scheme, _, rest = base_url.rstrip("/").partition("://")
    if rest.endswith("/chat/completions"):
        return f"{scheme}://{rest}"
    return f"{scheme}://{rest}{'' if '/' in rest else '/v1'}/chat/completions"


def words_of_server(response):
    """What a server itself says of a refusal, without a library's preamble, or ""."""
    try:
        content = json.loads(response.text)
        content = content[0] if isinstance(content, list) else content
        error = content.get("error", content) if isinstance(content, dict) else content
        said = error.get("message") or error.get("detail") if isinstance(error, dict) else error
        marks = [error.get(key) for key in ("code", "type", "param")] if isinstance(error, dict) else []
        said = said if isinstance(said, str) else json.dumps(said or content)
        marks = ", ".join(mark for mark in marks if isinstance(mark, str) and mark not in said)
        return f"{said} ({marks})" if marks else said
    except Exception:  # no response, no JSON, or one of another form
        return ""


def wait_of(response):
    """The seconds that Retry-After asks for, a number or a date, or None."""
    wait = str(response.headers.get("Retry-After", "")) if response is not None else ""
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", wait):
        seconds = float(wait)
    else:
        try:
            *date, zone = email.utils.parsedate_tz(wait)
            seconds = email.utils.mktime_tz((*date, zone or 0)) - time.time()  # without a zone: Greenwich
        except (TypeError, ValueError, OverflowError):
            return None
    return min(LONGEST_WAIT, seconds) if seconds > 0 else None


def read_choice(said, room):
    """What chat_completion returned -> as Llm.ask. `room`: how many tokens were allowed."""
    if not said.choices:
        return "", "an answer without choices"
    choice = said.choices[0]
    content = choice.message.content or ""
    if not isinstance(content, str):  # some servers answer in parts
        content = "".join(part.get("text") or "" for part in content)
    text = without_thoughts(content)
    if choice.finish_reason == "length":
        thought = choice.message.get("reasoning") or choice.message.get("reasoning_content") or content
        took = "cut at" if text.strip() or not thought else "thoughts took all"
        return content, f"{took} {room} tokens"
    return content, "" if text.strip() else "an empty answer"


def without_thoughts(text):
    """A template may hold their opening tag."""
    return re.sub("(?s)^.*</(think|thinking|thought)>|<(think|thinking|thought)>.*", "", text or "")


def parse_answer(text, keys, n):
    """What a model said -> {key: [n texts]} for the keys that it answered well, whatever else it said."""
    text = without_thoughts(text)
    mended = re.sub(r",(\s*[}\]])", r"\1", text)  # JSON5's comma before a closing bracket
    found = in_an_object(text, keys, n) or in_an_object(mended, keys, n)
    return found | each_by_itself(mended, keys, n, found)


WITH_NAME = r'(?:\s*:|[.)]\s|\s[(–—-])[^"\n]*'  # behind an id, within its quotes
DECODER = json.JSONDecoder(strict=False)  # a text may hold a line break


def tries(pattern, text):
    """Each may read to the end, so the longer a text, the fewer: 10,000 for 10 KB."""
    return itertools.islice(re.finditer(pattern, text), 10**8 // (len(text) + 1))


def in_an_object(text, keys, n):
    """The texts of the first JSON object that has some."""
    for brace in tries(r'\{\s*"', text):
        try:
            value, _ = DECODER.raw_decode(text, brace.start())
        except (ValueError, RecursionError):
            continue
        found = {key: usable_texts(value.get(key), n) for key in keys}
        found = {key: texts for key, texts in found.items() if texts}
        if found:
            return found
    return {}


def each_by_itself(text, keys, n, known):
    """Of an object that breaks off, or has "id: name" for a key: what is behind each key, if only one is."""
    found = {}
    for key in (key for key in keys if key not in known):
        said = []
        for start in tries(rf'"\s*({re.escape(key)}(?:{WITH_NAME})?)\s*"\s*:\s*(?=\[)', text):
            if start[1] != key and start[1] in keys:
                continue  # that is another class
            try:
                value, _ = DECODER.raw_decode(text, start.end())
            except (ValueError, RecursionError):
                continue
            said.append(usable_texts(value, n))
        if said and said[0] and all(texts == said[0] for texts in said):
            found[key] = said[0]
    return found


def usable_texts(texts, n):
    """The first n texts, no two alike, or None where there are fewer or a file cannot take one of them."""
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not all(isinstance(t, str) and t.strip() for t in texts):
        return None
    texts = list(dict.fromkeys(" ".join(t.split()) for t in texts))[:n]
    whole = not any(re.search("[\ud800-\udfff]", text) for text in texts)  # half a surrogate pair
    return texts if whole and len(texts) == n else None
