"""Models on disk and on a device: files of weights, folders, tokenizers, the text tower, precision."""

import argparse
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import open_clip
import pytest
import torch
from conftest import DRM, NAME, ROOT, VIT, argv, equal, run, stop_at, weights
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import load_file, save_file

import support.weights
from drm_min import main, tokenize
from support.errors import BadInput, write
from support.weights import agreed_preprocessing, encode_text, load_clip, read_weights, save_clip
from toy import pretrain

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def name(monkeypatch):
    """open_clip knows the small ViT by name."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, NAME, VIT)


# ------------------------------------------------------------------------------------------ files of weights


def quick(tower):
    return any(isinstance(m, open_clip.transformer.QuickGELU) for m in tower.modules())


def prefixed(state, prefix="module."):
    return {prefix + k: v for k, v in state.items()}


@pytest.mark.parametrize(
    "form",
    [
        lambda s: s,
        lambda s: {"state_dict": s},
        lambda s: {"epoch": 3, "model": s, "optimizer": {"lr": 1.0}},
        prefixed,
        None,
        lambda s: prefixed(s, "model."),
        lambda s: {"state_dict": prefixed(s)},
        lambda s: prefixed(s, "module.model."),
        lambda s: {"state_dict": prefixed(s, "module._orig_mod."), "hyper_parameters": {"lr": 1.0}},
    ],
)
def test_a_state_dict_in_any_wrapping_loads_whole_and_is_counted(world, tmp_path, capsys, form):
    state, file = weights(world / "vit"), tmp_path / ("w.pt" if form else "w.safetensors")
    torch.save(form(state), file) if form else save_file(state, file)
    model, _ = load_clip(NAME, str(file))
    assert equal(model.state_dict(), state) and not quick(model)
    assert f"all {len(state)} tensors" in capsys.readouterr().err


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    "change",
    [{"ln_final.bias": None}, {"ln_final.bias": torch.ones(3)}, {"ln_final.more": torch.ones(3)}],
)
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
        content = dict(
            namespace=dict(args=argparse.Namespace(lr=1), state_dict=state),
            module=torch.nn.Linear(2, 2),
            trap=dict(state_dict=state, x=Trap()),
            nothing={},
        )
        torch.save(content[kind], file)
    recwarn.clear()
    with pytest.raises(BadInput, match=f"--pretrained {file}: no .*state dict.*allowed"):
        load_clip(NAME, str(file))
    assert not made.exists() and not recwarn.list


@pytest.mark.parametrize("state", [b"", dict])
def test_an_empty_file_and_names_that_are_no_names_are_no_weights(tmp_path, state):
    file = tmp_path / "w.pt"
    file.write_bytes(b"") if state == b"" else torch.save({1: torch.ones(2)}, file)
    with pytest.raises(BadInput, match="no.* state dict"):
        read_weights(str(file))


def test_weights_of_openai_run_with_quickgelu_and_so_do_the_folders_they_become(world, tmp_path):
    numbers = dict(input_resolution=32, context_length=77, vocab_size=49408)
    file = tmp_path / "w.pt"
    torch.save(weights(world / "vit") | {k: torch.tensor(n) for k, n in numbers.items()}, file)
    run(tmp_path, world, model=NAME, pretrained=str(file), epochs=1)
    folder = tmp_path / DRM / "model"
    for model in (load_clip(NAME, str(file))[0], open_clip.create_model(f"local-dir:{folder}")):
        assert quick(model.visual) and quick(model.transformer)
    assert json.loads((folder / "drm.json").read_text())["quick_gelu"] is True


def test_a_file_that_is_silent_on_its_activation_gets_a_warning(world, tmp_path, capsys, monkeypatch):
    """Those of FLYP's or DRM's .pt have OpenAI's shapes without its marker keys: GELU is wrong there."""
    file, state = tmp_path / "w.pt", weights(world / "vit")
    torch.save(state, file)

    def told(model=NAME):
        is_quick = quick(load_clip(model, str(file))[0])
        lines = [line for line in capsys.readouterr().err.splitlines() if "GELU" in line]
        return is_quick, lines

    assert told() == (False, [])  # of this model there is one kind only
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, f"{NAME}-quickgelu", VIT | dict(quick_gelu=True))
    is_quick, (line,) = told()
    assert not is_quick and line.startswith(str(file)) and "GELU is used now" in line
    assert "OpenAI's, FLYP's and DRM's" in line and line.endswith(f"--model {NAME}-quickgelu")
    assert told(f"{NAME}-quickgelu") == (True, [])  # the reader has said it
    torch.save(state | {"vocab_size": torch.tensor(49408)}, file)
    assert told() == (True, [])  # OpenAI's own


def test_open_clip_has_both_kinds_of_the_papers_models():
    """By these names the warning knows where there is a choice, and that the plain one is GELU."""
    for name in ("ViT-B-16", "ViT-L-14", "ViT-L-14-336"):
        plain, other = (open_clip.get_model_config(n) for n in (name, f"{name}-quickgelu"))
        assert other == plain | {"quick_gelu": True} and not plain.get("quick_gelu")


def test_a_file_is_prepared_for_as_all_of_open_clips_weights_of_its_name_are(world, tmp_path, monkeypatch):
    """MobileCLIP's mean is 0, SigLIP's 0.5: by CLIP's own, a file of theirs gave other features silently."""
    for model, mean in (("MobileCLIP-S1", 0), ("ViT-B-16-SigLIP", 0.5), ("PE-Core-B-16", 0.5)):
        assert agreed_preprocessing(model)["mean"] == (mean,) * 3
    assert "mean" not in agreed_preprocessing("ViT-L-14")  # one of its weights has a mean of its own
    file, half = tmp_path / "w.pt", (0.5, 0.5, 0.5)
    torch.save(weights(world / "vit"), file)
    one = dict(mean=half, std=half, resize_mode="squash", url="")
    monkeypatch.setitem(
        open_clip.pretrained._PRETRAINED, NAME, {"one": one, "two": one | dict(std=(1, 1, 1))}
    )
    model, tokenizer = load_clip(NAME, str(file))
    save_clip(tmp_path / "saved", model, tokenizer, {})
    model, _ = load_clip(f"local-dir:{tmp_path / 'saved'}")
    known = open_clip.get_model_preprocess_cfg(model)
    assert (tuple(known["mean"]), known["resize_mode"]) == (half, "squash")
    assert tuple(known["std"]) == PreprocessCfg.std


def ones(*names):
    return {name: torch.ones(1) for name in names}


OF_HUGGING_FACE = ones("logit_scale", "text_model.final_layer_norm.bias", "vision_model.embeddings.class")
OF_LORA = ones(*(f"base_model.model.visual.attn.lora_{side}.weight" for side in "AB"))
OF_TIMM = ones("cls_token", "patch_embed.proj.weight", "blocks.0.norm1.weight")
TRAINER = {"epoch": 1, "pytorch-lightning_version": "2.6", "hyper_parameters": {"lr": 1.0}}
CLOTHES = {
    "hugging face": ("model.safetensors", lambda s: OF_HUGGING_FACE, "Hugging Face's", "text_model.final"),
    "hugging face, pickled": (
        "pytorch_model.bin",
        lambda s: OF_HUGGING_FACE,
        "Hugging Face",
        "vision_model.",
    ),
    "hugging face, wrapped": ("w.pt", lambda s: prefixed(OF_HUGGING_FACE), "Hugging Face", "vision_model."),
    "lora": ("adapter_model.safetensors", lambda s: OF_LORA, "a LoRA adapter", "attn.lora_A"),
    "lora, another name": ("w.pt", lambda s: s | OF_LORA, "a LoRA adapter", "attn.lora_B"),
    "timm": ("w.pth", lambda s: OF_TIMM, "timm's image tower", "patch_embed"),
    "a shard": ("model-00002-of-00002.safetensors", lambda s: dict(list(s.items())[9:]), "sharded", ""),
    "a pickled shard": ("pytorch_model-00001-of-00002.bin", lambda s: dict([*s.items()][:9]), "sharded", ""),
    "lightning": ("a.ckpt", lambda s: TRAINER | {"state_dict": prefixed(s, "clip.")}, "Lightning", '"clip.'),
    "lightning, more": (
        "a.ckpt",
        lambda s: TRAINER | {"state_dict": prefixed(s, "model.") | ones("loss.weight")},
        "Lightning",
        '"model.',
    ),
    "unknown": ("w.pt", lambda s: prefixed(s, "my.odd."), "", '"my.odd.'),
}


@pytest.mark.parametrize("called, form, said, unexpected", CLOTHES.values(), ids=CLOTHES)
def test_weights_in_other_clothes_are_named_with_the_first_names_that_reveal_them(
    world, tmp_path, called, form, said, unexpected
):
    state, file = weights(world / "vit"), tmp_path / called
    (save_file if called.endswith("safetensors") else torch.save)(form(state), file)
    with pytest.raises(BadInput) as refused:
        load_clip(NAME, str(file))
    line = str(refused.value)
    assert line.startswith(f"--pretrained {file}, --model {NAME}: ") and "allowed: " in line
    assert ("looks like" in line) == bool(said) and said in line and unexpected in line
    assert ("Unexpected" in line) == bool(unexpected) and line.count('"') <= 2 * 3 * 2 and len(line) < 1000
    missing = [key for key in state if f'"{key}"' in line.partition("Unexpected")[0]]
    assert "Missing" not in line or len(missing) == 3


def test_names_of_another_model_are_told_and_no_format_is_guessed(world, tmp_path):
    """SigLIP's image tower is timm's within open_clip's names, and a path may hold any word."""
    file = tmp_path / "lightning-1-of-2.d" / "lora_B" / "w.pt"
    file.parent.mkdir(parents=True)
    torch.save(weights(world / "siglip"), file)
    with pytest.raises(BadInput, match="Unexpected.*logit_bias") as refused:
        load_clip(NAME, str(file))
    assert "looks like" not in str(refused.value)


@pytest.mark.parametrize(
    "called, content, said",
    [
        ("model.safetensors.index.json", b'{"weight_map": {}}', "sharded"),
        ("pytorch_model.bin.index.json", b'{"weight_map": {}}', "sharded"),
        ("adapter_config.json", b'{"peft_type": "LORA"}', "a LoRA adapter"),
        ("a.ckpt", TRAINER | {"hyper_parameters": argparse.Namespace(lr=1)}, "argparse.Namespace"),
        ("w.pt", dict(epoch=1, model_state_dict=ones("a")), "epoch, model_state_dict"),
        ("w.pt", TRAINER, "Lightning"),
    ],
)
def test_a_file_that_holds_no_state_dict_is_told_by_what_it_holds(tmp_path, called, content, said):
    file = tmp_path / called
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(BadInput, match=f"--pretrained {file}: no .*state dict.*{said}"):
        load_clip(NAME, str(file))


def test_capitals_at_the_end_of_a_name_made_safetensors_a_pickle(world, tmp_path):
    save_file(weights(world / "vit"), tmp_path / "W.SAFETENSORS")
    load_clip(NAME, str(tmp_path / "W.SAFETENSORS"))


def test_a_folder_in_other_clothes_is_told_by_what_it_holds(tmp_path):
    """PEFT's, by either option; open_clip's own, given as weights."""
    (tmp_path / "adapter_config.json").write_text("{}")
    for model in ((NAME, str(tmp_path)), (f"local-dir:{tmp_path}",)):
        with pytest.raises(BadInput, match=f"{tmp_path}: no .*looks like a LoRA adapter: merge it"):
            load_clip(*model)
    (tmp_path / "adapter_config.json").rename(tmp_path / "open_clip_config.json")
    with pytest.raises(BadInput, match="say --model local-dir:"):
        load_clip(NAME, str(tmp_path))


def test_a_damaged_folder_is_told_by_the_first_names_of_each_kind(world, tmp_path):
    """All the missing ones stood before the first that was unexpected, which was cut off."""
    shutil.copytree(world / "vit", tmp_path / "model")
    save_file(OF_LORA, tmp_path / "model" / "open_clip_model.safetensors")
    with pytest.raises(BadInput, match="Missing .*and 35 more. Unexpected .*lora_A"):
        load_clip(f"local-dir:{tmp_path / 'model'}")


# ------------------------------------------------------------------------------------------------ tokenizers


class Words:
    """In the manner of open_clip.HFTokenizer: a word is a token; when a text is cut, its end token stays."""

    def __init__(self, pad, end, last=(), clean=str):
        self.context_length, self.pad, self.end, self.last, self.clean_fn = 16, pad, end, list(last), clean
        self.tokenizer_mode = "clips" if last else ""

    def tokenizer(self, text):
        """As Hugging Face's own: whole, with the end token."""
        return SimpleNamespace(input_ids=[3 + len(word) for word in text.split()] + [self.end])

    def __call__(self, texts, context_length=None):
        room = (context_length or self.context_length) - len(self.last)
        rows = []
        for text in texts:
            own = self.tokenizer(self.clean_fn(text)).input_ids[:-1]
            rows.append(own[: room - 1] + [self.end])
        return torch.tensor([row + [self.pad] * (room - len(row)) + self.last for row in rows])


TOKENIZERS = {
    "clip-16": (open_clip.SimpleTokenizer(context_length=16), 14),
    "clip": (open_clip.SimpleTokenizer(), 75),
    "pad-0": (Words(0, 2), 15),
    "pad-1": (Words(1, 2), 15),
    "siglip": (Words(1, 1), 15),  # pads with its end token
    "clips": (Words(0, 2, [101]), 14),  # puts a class token behind the padding
}


@pytest.mark.parametrize("tokenizer, words", TOKENIZERS.values(), ids=TOKENIZERS)
def test_a_text_that_just_fits_is_read_and_one_word_more_is_refused(tokenizer, words):
    flat, length = ["cat " * words, "a", "dog"], tokenizer.context_length
    fits = tokenize(tokenizer, [flat[:2], flat[2:]])
    assert torch.equal(fits.tokens, tokenizer(flat))
    assert fits.tokens.shape == (3, length) and fits.owner.tolist() == [0, 0, 1]
    for more, n in ((1, length + 1), (5000, r"\d+")):
        with pytest.raises(BadInput, match=rf"looks.json: a text of {n} tokens, 'cat .*{length} at most"):
            tokenize(tokenizer, [["a"], ["cat " * (words + more)]], "looks.json")


def test_a_text_is_counted_as_its_tokenizer_cleans_it():
    """SigLIP's takes the punctuation away before it looks for tokens."""
    cleaned = Words(1, 1, clean=lambda text: text.replace(",", ""))
    fits = "cat , " * 15
    assert torch.equal(tokenize(cleaned, [[fits]]).tokens, cleaned(["cat " * 15]))
    with pytest.raises(BadInput, match="17 tokens"):
        tokenize(cleaned, [[fits + "cat"]])


def test_the_token_that_pads_is_counted_where_a_text_holds_it():
    """CLIP pads with 0, which is also the "!" within a word."""
    tokenizer = open_clip.SimpleTokenizer(context_length=16)
    assert tokenizer.encode("wow!~").count(0) == 1
    with pytest.raises(BadInput, match="17 tokens"):
        tokenize(tokenizer, [["a " * 12 + "wow!~"]])


def test_over_long_texts_are_counted_and_refused_not_cut(clip):
    """open_clip cuts them without a word, and two different sentences get one embedding."""
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    a, b = "cat " * 90, "dog " * 90
    with pytest.raises(BadInput, match="92 tokens.*cat cat.*77 at most"):
        tokenize(tokenizer, [[a.strip()], [b.strip()]])
    just = tokenize(tokenizer, [["cat " * 75], ["dog"]])  # 75 + start + end
    assert just.tokens.shape == (2, 77)


# ------------------------------------------------------------------------------------------------ text tower


def random_clip(custom_text=False, pool="argmax", **text):
    torch.manual_seed(0)
    vision = dict(layers=1, width=32, head_width=16, patch_size=16, image_size=32)
    text = dict(context_length=77, vocab_size=49408, width=32, heads=2, layers=2, pool_type=pool) | text
    kind = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
    return kind(16, open_clip.CLIPVisionCfg(**vision), open_clip.CLIPTextCfg(**text)).eval()


PROMPTS = ["a cat", "a photo of a very long word salad that goes on and on", "x"]
MANY = [f"{i} " * (1 + 7 * i % 30) for i in range(200)]  # lengths all mixed up: read in parts of like length


@pytest.mark.parametrize("prompts", [PROMPTS, MANY], ids=["few", "many"])
@pytest.mark.parametrize("custom_text", [False, True])
def test_encode_text_equals_open_clip(custom_text, prompts):
    model, tokens = random_clip(custom_text), open_clip.get_tokenizer("ViT-B-32")(prompts)
    assert torch.allclose(encode_text(model, tokens), model.encode_text(tokens, normalize=True), atol=1e-5)
    assert encode_text(model, tokens).norm(dim=1).sub(1).abs().max() < 1e-5


def test_encode_text_reads_no_further_than_the_longest_end_token():
    model, tokens, lengths = random_clip(), open_clip.get_tokenizer("ViT-B-32")(PROMPTS), []
    model.ln_final.register_forward_hook(lambda module, args, out: lengths.append(out.shape[1]))
    encode_text(model, tokens)
    assert lengths == [int((tokens != 0).sum(1).max())] and lengths[0] < 20
    lengths.clear()
    encode_text(model, open_clip.get_tokenizer("ViT-B-32")(MANY))
    assert len(lengths) == 3
    assert lengths[0] < lengths[1] < lengths[2]  # the short ones are not read as far as the long ones


@pytest.mark.parametrize(
    "text",
    [
        dict(no_causal_mask=True),
        dict(pool="last", no_causal_mask=True),
        dict(embed_cls=True, pad_id=0, output_tokens=False),
    ],
)
def test_text_towers_that_see_the_padding_take_the_ordinary_path(text):
    model, tokens = random_clip(True, **text), open_clip.get_tokenizer("ViT-B-32")(PROMPTS)
    assert torch.allclose(encode_text(model, tokens), model.encode_text(tokens, normalize=True), atol=1e-6)


def test_torch_2_4_is_given_the_arguments_that_it_asks_for(monkeypatch):
    """There, functional_call has no default for the positional ones."""
    call = support.weights.functional_call

    def as_in_2_4(module, weights, args, kwargs=None):
        return call(module, weights, args, kwargs)

    monkeypatch.setattr(support.weights, "functional_call", as_in_2_4)
    assert encode_text(random_clip(), open_clip.get_tokenizer("ViT-B-32")(PROMPTS)).shape == (3, 16)


@pytest.mark.parametrize("prompts", [PROMPTS, MANY], ids=["few", "many"])
def test_gradient_of_the_trimmed_text_equals_that_of_the_whole(prompts):
    model, tokens = random_clip(), open_clip.get_tokenizer("ViT-B-32")(prompts)
    target = torch.randn(len(prompts), 16, generator=torch.Generator().manual_seed(1))
    parameters = (model.token_embedding.weight, model.positional_embedding, model.text_projection)
    gradients = []
    for features in (encode_text(model, tokens), model.encode_text(tokens, normalize=True)):
        model.zero_grad()
        (features * target).sum().backward()
        gradients.append([p.grad.clone() for p in parameters])
    for trimmed, whole in zip(*gradients):
        assert 0 < whole.abs().max() and (trimmed - whole).abs().max() <= 1e-5 * whole.abs().max()


# --------------------------------------------------------------------------------------------- model folders


@pytest.mark.parametrize("other", [True, False])
def test_a_folder_with_another_activation_than_it_was_trained_with_is_refused(world, tmp_path, other):
    save_clip(tmp_path / "model", load_clip(f"local-dir:{world / 'vit'}")[0], None, {})
    for file, value in (("open_clip_config.json", other), ("drm.json", not other)):
        content = json.loads((tmp_path / "model" / file).read_text())
        content.get("model_cfg", content)["quick_gelu"] = value
        (tmp_path / "model" / file).write_text(json.dumps(content))
    with pytest.raises(BadInput, match=f"trained {'without' if other else 'with'} QuickGELU"):
        load_clip(f"local-dir:{tmp_path / 'model'}")


@pytest.mark.parametrize(
    "prepare",
    [
        dict(resize_mode="longest", fill_color=90),
        dict(interpolation="bilinear", mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7]),
        dict(resize_mode="squash"),
    ],
    ids=["longest", "shortest", "squash"],
)
def test_a_saved_folder_prepares_a_picture_as_the_model_that_it_came_from(world, tmp_path, prepare):
    """Where it left out one of these, open_clip would take its own default, and the pixels would differ."""
    shutil.copytree(world / "vit", tmp_path / "one")
    config = dict(model_cfg=VIT, preprocess_cfg=prepare)
    (tmp_path / "one" / "open_clip_config.json").write_text(json.dumps(config))
    model, tokenizer = load_clip(f"local-dir:{tmp_path / 'one'}")
    save_clip(tmp_path / "two", model, tokenizer, {})
    again, _ = load_clip(f"local-dir:{tmp_path / 'two'}")
    picture = Image.effect_noise((50, 20), 99).convert("RGB")

    def pixels(cfg):
        return image_transform_v2(PreprocessCfg(**cfg), is_train=False)(picture)

    own, saved = (open_clip.get_model_preprocess_cfg(m) for m in (model, again))
    assert json.dumps(saved) == json.dumps(own) and own.keys() == PreprocessCfg.__dataclass_fields__.keys()
    assert torch.equal(pixels(own), pixels(saved))
    for key in prepare:
        assert not torch.equal(pixels(own), pixels({k: v for k, v in own.items() if k != key})), key


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_every_file_of_a_run_has_the_mode_that_the_umask_gives(world, tmp_path, umask):
    """safetensors makes files that only their owner can read: a colleague could not load the model."""
    before = os.umask(umask)
    try:
        assert stop_at(tmp_path / "stopped", 3, world, select="best") == 130
        assert main(argv(tmp_path / "whole", world, epochs=1)) == 0
        write(tmp_path / "one.safetensors", lambda path: save_file(ones("a"), path))
    finally:
        os.umask(before)
    files = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.rglob("*") if file.is_file()}
    assert {"open_clip_model.safetensors", "progress.pt", "results.json", "one.safetensors"} <= files.keys()
    assert set(files.values()) == {0o666 & ~umask}


def test_the_toy_clip_trained_anew_could_be_read_by_its_owner_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["pretrain.py", "--out", str(tmp_path), "--steps", "2", "--batch-size", "8"]
    )
    before = os.umask(0o022)
    try:
        pretrain.main()
    finally:
        os.umask(before)
        logging.disable(logging.NOTSET)
    assert {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {
        "open_clip_config.json": 0o644,
        "open_clip_model.safetensors": 0o644,
    }


def test_a_disk_that_knows_no_modes_costs_no_model(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    write(tmp_path / "one.safetensors", lambda path: save_file(ones("a"), path))
    assert equal(load_file(tmp_path / "one.safetensors"), ones("a"))


def test_the_tiny_clip_is_an_ordinary_open_clip_folder():
    folder = ROOT / "toy" / "clip"
    model = open_clip.create_model(f"local-dir:{folder}", require_pretrained=True)
    assert sum(f.stat().st_size for f in folder.iterdir()) < 8e6
    assert sum(p.numel() for p in model.visual.parameters()) < 1e6
    assert not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in model.modules())


def test_weights_arrive_in_float32_and_eval_mode(clip):
    model, _ = load_clip("local-dir:toy/clip")
    assert not model.training and {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.slow
def test_pretraining_starts_from_nothing_and_saves_a_folder_that_loads(tmp_path):
    words = ["--out", tmp_path / "clip", "--steps", "2", "--batch-size", "20"]
    job = [sys.executable, ROOT / "toy/pretrain.py", *words]
    done = subprocess.run(job, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    new, old = load_clip(f"local-dir:{tmp_path / 'clip'}")[0], load_clip("local-dir:toy/clip")[0]
    shapes, others = ({k: v.shape for k, v in m.state_dict().items()} for m in (new, old))
    assert shapes == others and not equal(new.state_dict(), old.state_dict())
