"""CLIP models on disk and on a device: loading, saving, precision; texts without their padding."""

import difflib
import json
import logging
import os
import re
import warnings
from pathlib import Path
from typing import NamedTuple

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.func import functional_call

from support.errors import BadInput, find, first_of, log, read_json

# Weights in other clothes: what betrays them in the name of a file or tensor -> whose, and what to do
OTHER_FORMATS = {
    r"^open_clip_config\.json": "an open_clip folder: say --model local-dir:FOLDER instead",
    r"^adapter_(config|model)\b|lora[_.]([AB]|up|down)": "a LoRA adapter: merge it into its base model first",
    r"-\d+-of-\d+\.|\.index\.json": "a part of a sharded checkpoint: join its parts in one file",
    r"(^|\.)(vision|text)_model\.": "Hugging Face's CLIP: take open_clip's instead, or rename its tensors",
    r"^(patch_embed|blocks\.0)\.": "timm's image tower: without a text tower it is no CLIP",
    r"lightning|^hyper_parameters$": "a Lightning checkpoint: save the state dict of its CLIP alone",
}


def pick_device(name):
    """A name such as "cuda:1", or "auto" -> torch.device. Raises BadInput for one that is not there."""
    there = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    there += ["mps"] * torch.backends.mps.is_available() + ["cpu"]
    if name != "auto" and name not in there and not (name == "cuda" and torch.cuda.is_available()):
        raise BadInput(f"--device {name}: not on this machine; allowed: auto, {', '.join(there)}")
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")  # TF32 where autocast is off: evaluation, and fp32
    device = torch.device(there[0] if name == "auto" else name)
    if device.index is not None:  # else the thread that pins memory would open another GPU
        torch.cuda.set_device(device)
    return device


def pick_precision(name, device):
    """A name such as "bf16", or "auto" -> the same without "auto". Raises BadInput if it will not do."""
    if name == "auto" and device.type == "cuda":  # before Ampere, bf16 is emulated and slow
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    if name == "fp16" and device.type != "cuda":
        raise BadInput(f"--precision fp16: needs a CUDA GPU, not {device.type}; allowed: auto, fp32, bf16")
    return "fp32" if name == "auto" else name


class Half(NamedTuple):
    autocast: torch.autocast
    scaler: torch.amp.GradScaler


def mixed_precision(name, device):
    """A --precision -> Half. Weights stay float32 whatever the name; only fp16 needs the scaler."""
    name = pick_precision(name, device)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name)
    autocast = torch.autocast(device.type, dtype, enabled=dtype is not None)
    return Half(autocast, torch.amp.GradScaler(device.type, enabled=name == "fp16"))


def count_tokens(tokenizer, text):
    """The tokens of a text, with its start and end, however many the model reads."""
    if isinstance(tokenizer, open_clip.SimpleTokenizer):
        return len(tokenizer.encode(text)) + 2
    own = len(tokenizer.tokenizer(tokenizer.clean_fn(text)).input_ids)  # Hugging Face's, with start and end
    return own + (tokenizer.tokenizer_mode == "clips")  # which puts a class token behind the padding


def check_lengths(tokenizer, texts, source):
    """A text longer than the context would be cut without a word. Raises BadInput, which names it."""
    for text in texts:
        n, room = count_tokens(tokenizer, text), tokenizer.context_length
        if n > room:
            raise BadInput(f"{source}: a text of {n} tokens, {text[:50]!r}; the model reads {room} at most")


def encode_text(model, tokens):
    """Tokens (T, L) -> unit text embeddings (T, D); texts of like length together, up to their end token.

    Under causal attention no token sees the padding behind it, so this is exact, and several times cheaper
    than all 77 for each. A text tower that pads otherwise is given all L tokens.
    """
    tower, prefix = (model, "") if hasattr(model, "positional_embedding") else (model.text, "text.")
    pool = getattr(tower, "text_pool_type", getattr(tower, "pool_type", None))
    mask = getattr(tower, "attn_mask", None)
    if pool != "argmax" or mask is None or getattr(tower, "cls_emb", None) is not None:
        return model.encode_text(tokens, normalize=True)
    lengths = tokens.argmax(1) + 1  # the end token has the largest id
    parts = max(1, min(4, len(tokens) // 64))  # more would have less padding, and keep a GPU waiting
    order = lengths.argsort() if parts > 1 else torch.arange(len(tokens), device=tokens.device)
    longest = [int(some.max()) for some in lengths[order].cpu().chunk(parts)]  # a GPU waits here, once
    features = []
    for part, n in zip(order.chunk(parts), longest):
        position, part_mask = tower.positional_embedding[:n], mask[:n, :n]
        short = {prefix + "positional_embedding": position, prefix + "attn_mask": part_mask}
        out = functional_call(model, short, (), {"text": tokens[part, :n]})
        features.append(out["text_features"] if isinstance(out, dict) else out[1])
    return torch.cat(features)[order.argsort()]  # (T, D)


def load_clip(model, pretrained=None, device="cpu"):
    """An open_clip model with its tokenizer -> (model in eval mode and float32, tokenizer). Raises BadInput.

    `model`: a name such as "ViT-B-16" (`pretrained`: a tag or a file), local-dir:FOLDER or hf-hub:OWNER/NAME.
    """
    if ":" not in model:
        state, activation, looks = find_weights(model, pretrained)
    elif pretrained:
        raise BadInput(f"--pretrained {pretrained}: --model {model} has its own weights; leave it out")
    else:
        state, (model, activation) = None, find_folder(model)
    logging.disable(logging.CRITICAL)  # what matters of open_clip's log is said by the exception
    try:
        clip, tokenizer = build(model, pretrained, state, activation, device)
        try_out(clip, tokenizer, device)
    except ImportError as e:
        what = f"a package that is not installed ({e}); pip install transformers"
        raise BadInput(f"--model {model}: its tokenizer or text tower needs {what}") from None
    except Exception as e:  # damaged weights, another shape, no network: many kinds are raised
        file = f"--pretrained {pretrained}, " if state else ""
        allowed = f"{looks}; allowed: a state dict with open_clip's names and shapes" if state else ""
        raise BadInput(f"{file}--model {model}: open_clip cannot load it: {in_short(e)}{allowed}") from None
    finally:
        logging.disable(logging.NOTSET)
    if state:
        log(f"{pretrained}: all {len(state)} tensors loaded into {model}")
    if state and activation is None and f"{model}-quickgelu" in open_clip.list_models():
        other = f"OpenAI's, FLYP's and DRM's weights do: for them say --model {model}-quickgelu"
        log(f"{pretrained}: does not tell whether it wants QuickGELU; GELU is used now. {other}")
    if activation is not None and activation != clip.model_cfg["quick_gelu"]:
        so = "with" if activation else "without"
        features = "this model would give other features"
        raise BadInput(f"--model {model}: trained {so} QuickGELU, so {features}; allowed: a model {so} it")
    return clip, tokenizer


def in_short(error):
    """An exception in a line: of hundreds of names that torch lists, the first three of a kind."""
    said = " ".join(str(error).split()) or repr(error)
    return re.sub(r'"[^"]*"(, "[^"]*")*', lambda names: first_of(names[0].split(", "), 3), said)[:500]


def looks_like(path, *names):
    """A file or folder, names of tensors -> the end of a line that says which other format it is, or ""."""
    inner = Path(path).glob("*") if os.path.isdir(path) else ()
    names = "\n".join([Path(path).name, *(file.name for file in inner), *names])
    found = [what for mark, what in OTHER_FORMATS.items() if re.search(mark, names, re.MULTILINE)]
    return f"; it looks like {'; and like '.join(found)}" if found else ""


def find_folder(model):
    """-> (model, its folder made absolute; whether drm.json beside its weights says QuickGELU)."""
    if not model.startswith("local-dir:"):
        return model, None
    folder = find(model.removeprefix("local-dir:"))
    if not os.path.isfile(folder / "open_clip_config.json"):
        allowed = f"a folder that open_clip saved{looks_like(folder)}"
        raise BadInput(f"--model {model}: no open_clip_config.json; allowed: {allowed}")
    about = read_json(folder / "drm.json") if os.path.isfile(folder / "drm.json") else {}
    return f"local-dir:{folder}", about.get("quick_gelu")


def find_weights(model, pretrained):
    """As read_weights; the state dict is None for a tag of open_clip's."""
    if model not in open_clip.list_models():
        near = ", ".join(difflib.get_close_matches(model, open_clip.list_models(), 5, 0))
        allowed = f"local-dir:FOLDER, hf-hub:OWNER/NAME, or a name such as {near}"
        raise BadInput(f"--model {model}: unknown to open_clip; allowed: {allowed}")
    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained in tags:
        return None, bool(open_clip.get_pretrained_cfg(model, pretrained).get("quick_gelu")), ""
    if pretrained and os.path.isfile(pretrained):
        return read_weights(pretrained)
    why = f"no weights for --model {model}, and random ones are no zero-shot model"
    looks = looks_like(pretrained) if pretrained else ""
    raise BadInput(f"--pretrained {pretrained}: {why}; allowed: a file, {', '.join(tags)}{looks}")


def build(model, pretrained, state, activation, device):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        how = {"load_weights": not state, "require_pretrained": not state, "pretrained_text": False}
        quick = bool(activation) and ":" not in model
        how["force_preprocess_cfg"] = agreed_preprocessing(model) if state else None
        tag = None if state else pretrained
        clip = open_clip.create_model(model, tag, force_quick_gelu=quick, device=device, **how)
        tokenizer = open_clip.get_tokenizer(model)
    if state:
        if "positional_embedding" in state and not hasattr(clip, "positional_embedding"):
            state = open_clip.model.convert_to_custom_text_state_dict(state)
        clip.load_state_dict(state, strict=True)
    quick_gelu = any(isinstance(m, open_clip.transformer.QuickGELU) for m in clip.modules())
    clip.model_cfg = open_clip.get_model_config(model) | {"quick_gelu": quick_gelu}  # for folders to save
    return clip.float().eval(), tokenizer


def agreed_preprocessing(model):
    """What all of open_clip's weights of a name want of an image, mean and so on: a file does not tell."""
    tags = open_clip.list_pretrained_tags_by_model(model)
    every = [set(open_clip.get_pretrained_cfg(model, tag).items()) for tag in tags]
    return dict(set.intersection(*every)) if every else None


@torch.no_grad()
def try_out(clip, tokenizer, device):
    """A look at nothing shows what would be found out later. Raises ValueError."""
    cfg = PreprocessCfg(**open_clip.get_model_preprocess_cfg(clip))
    try:
        prepare = image_transform_v2(cfg, is_train=False)
    except AssertionError:
        raise ValueError(f"how does one prepare images by {cfg}?") from None
    nothing = prepare(Image.new("RGB", (64, 64)))[None]
    seen = clip.encode_image(nothing.to(device)), clip.encode_text(tokenizer([""]).to(device))
    if not all(features.isfinite().all() for features in seen):
        raise ValueError("its features are not finite")


def read_weights(path):
    """A file of weights -> (state dict, True if it wants QuickGELU, else None, looks_like). Raises BadInput.

    safetensors, or a state dict saved by torch, also inside "state_dict" or "model" and with "module." or
    "model." before its names. OpenAI's tells by its marker keys that it wants QuickGELU. Nothing is ever
    unpickled: that would run code in the file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is said of TorchScript and old pickles is said below
            if str(path).lower().endswith(".safetensors"):
                state = load_file(path)
            else:
                state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:
        said = in_short(str(e).rpartition("WeightsUnpickler error: ")[2])  # and none of torch's advice
        said = re.split(" was not | Check ", said)[0][:120]
        why = "no plain state dict; a pickled object (FLYP's and DRM's .pt, TorchScript) is never loaded"
        allowed = f"safetensors, or torch.save(model.state_dict()) ({said}){looks_like(path, said)}"
        raise BadInput(f"--pretrained {path}: {why}; allowed: {allowed}") from None
    outer = list(map(str, state)) if isinstance(state, dict) else []
    for key in ("state_dict", "model") * 2:  # one in the other, in either order
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    named = isinstance(state, dict) and state and all(isinstance(key, str) for key in state)
    if not named or not all(isinstance(value, torch.Tensor) for value in state.values()):
        allowed = f"names with tensors{looks_like(path, *outer)}"
        holds = first_of(outer, 3)[:200] or type(state).__name__
        raise BadInput(f"--pretrained {path}: no state dict (it holds: {holds}); allowed: {allowed}")
    for prefix in ("module.", "_orig_mod.", "model.") * 2:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    markers = [state.pop(key, None) for key in ("input_resolution", "context_length", "vocab_size")]
    openai = any(marker is not None for marker in markers)
    return state, True if openai else None, looks_like(path, *outer, *state)


def save_clip(folder, model, tokenizer, about):
    """A model as a folder that open_clip loads with local-dir:, and `about` beside it as drm.json."""
    folder.mkdir(parents=True)
    prepare = {k: v for k, v in open_clip.get_model_preprocess_cfg(model).items() if k != "size"}
    config = {"model_cfg": model.model_cfg, "preprocess_cfg": prepare}  # the size is the model's
    about = about | {"quick_gelu": model.model_cfg["quick_gelu"]}
    for name, content in (("open_clip_config.json", config), ("drm.json", about)):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    state = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    if hasattr(tokenizer, "save_pretrained"):  # open_clip looks for them in the folder
        tokenizer.save_pretrained(folder)
