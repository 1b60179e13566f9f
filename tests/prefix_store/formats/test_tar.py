from __future__ import annotations

import gzip
import io
import random
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from prefix_store.errors import InvalidArtifact, InvalidUpload, UnsupportedFormat
from prefix_store.formats.tar import MAX_MEMBERS, read_files

WANTED = frozenset({"config", "weights"})
FILES = {"config": b"{}", "weights": b"w" * 1000}


def tar(*members: tarfile.TarInfo | tuple[str, bytes], format: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def special(kind: bytes, name: str = "config", **fields: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def patched(data: bytes, at: int, field: bytes) -> bytes:
    """The archive with some bytes changed, and that header's checksum made right."""
    changed = bytearray(data)
    changed[at : at + len(field)] = field
    begin = at - at % 512
    changed[begin + 148 : begin + 156] = b" " * 8
    changed[begin + 148 : begin + 156] = b"%06o\0 " % sum(changed[begin : begin + 512])
    return bytes(changed)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("folder", ["", "./", "my-task/", "./my-task/", "x" * 90 + "/", "ü/"])
def test_every_common_dialect_is_read(format: int, folder: str) -> None:
    members = [(f"{folder}{name}", content) for name, content in FILES.items()]
    readme = (f"{folder}README.md", b"hello")

    assert read_files(tar(readme, *members, format=format), WANTED) == FILES


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_are_read(format: int) -> None:
    folder = "x" * 300

    members = [(f"{folder}/{name}", content) for name, content in FILES.items()]
    assert read_files(tar(*members, format=format), WANTED) == FILES


def test_float_times_in_pax_headers_are_skipped() -> None:
    info = tarfile.TarInfo("config")
    info.mtime = 1.5
    info.pax_headers = {"comment": "\u00e9 = x\n", "empty": ""}

    assert read_files(tar(info, format=tarfile.PAX_FORMAT), WANTED) == {"config": b""}


@pytest.mark.parametrize(
    "arguments", [["task"], ["-C", "task", "."], ["-C", "task", "config", "weights"]]
)
@pytest.mark.parametrize("dialect", ["gnu", "pax", "ustar"])
def test_what_the_command_makes_is_read(tmp_path: Path, arguments: list[str], dialect: str) -> None:
    folder = tmp_path / "task"
    (folder / "checkpoint-10").mkdir(parents=True)
    (folder / ".gitattributes").write_text("x")
    (folder / "checkpoint-10" / "weights").write_text("old")
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    made = subprocess.run(
        ["tar", f"--format={dialect}", "-c", *arguments],
        cwd=tmp_path,
        capture_output=True,
        check=True,
    )

    assert read_files(made.stdout, WANTED) == FILES


HOSTILE: dict[str, Callable[[], bytes]] = {
    "symbolic link": lambda: tar(special(tarfile.SYMTYPE, linkname="/etc/passwd")),
    "hard link": lambda: tar(special(tarfile.LNKTYPE, linkname="weights")),
    "device": lambda: tar(special(tarfile.CHRTYPE)),
    "block device": lambda: tar(special(tarfile.BLKTYPE)),
    "fifo": lambda: tar(special(tarfile.FIFOTYPE)),
    "contiguous": lambda: tar(special(tarfile.CONTTYPE)),
    "sparse": lambda: tar(special(tarfile.GNUTYPE_SPARSE)),
    "long link": lambda: tar(special(tarfile.SYMTYPE, linkname="x" * 200)),
    "link beside": lambda: tar(*FILES.items(), special(tarfile.SYMTYPE, "x", linkname="y")),
    "absolute": lambda: tar(("/config", b"")),
    "parent": lambda: tar(("../config", b"")),
    "parent inside": lambda: tar(("a/../config", b"")),
    "parent of a skipped file": lambda: tar(("../README", b""), *FILES.items()),
    "parent in a long name": lambda: tar(("x" * 150 + "/../config", b"")),
    "pax parent": lambda: tar(("../" + "x" * 150, b""), format=tarfile.PAX_FORMAT),
    "name of 5000": lambda: tar(("x" * 5000, b"")),
    "name of 100 000": lambda: tar(("x" * 100_000, b"")),
    "name not UTF-8": lambda: patched(tar(("config", b"")), 0, b"\xff"),
    "twice": lambda: tar(("config", b"a"), ("config", b"b")),
    "twice by dots": lambda: tar(("config", b"a"), ("./config", b"b")),
    "two folders": lambda: tar(("a/config", b"a"), ("b/config", b"b")),
    "too many members": lambda: tar(*((f"{i}", b"") for i in range(MAX_MEMBERS + 1))),
    "negative size": lambda: patched(tar(("config", b"")), 124, b"-0000000001\0"),
    "negative binary size": lambda: patched(tar(("config", b"")), 124, b"\xff" * 12),
    "binary size": lambda: patched(tar(("config", b"")), 124, b"\x80" + b"\0" * 10 + b"\x10"),
    "size beyond": lambda: patched(tar(("config", b"")), 124, b"77777777777\0"),
    "no size": lambda: patched(tar(("config", b"")), 124, b"\0" * 12),
    "pax size": lambda: pax({"size": "-512"}),
    "pax big size": lambda: pax({"size": "99999999999"}),
    "pax sparse": lambda: pax({"GNU.sparse.size": "99999999999", "GNU.sparse.name": "config"}),
    "pax link": lambda: pax({"linkpath": "/etc/passwd"}),
    "pax broken": lambda: pax_raw(b"99 path=x\n"),
    "pax zero length": lambda: pax_raw(b"0 path=x\n"),
    "pax no newline": lambda: pax_raw(b"9 path=xy"),
    "pax empty": lambda: pax_raw(b"x"),
    "pax global path": lambda: pax_raw(b"10 path=x\n", tarfile.XGLTYPE),
    "wrong checksum": lambda: tar(("config", b"")).replace(b"config", b"Config"),
    "cut in the data": lambda: tar(*FILES.items())[:1600],
    "cut before the end": lambda: tar(("config", b""))[:512],
    "bytes behind the end": lambda: tar(*FILES.items()) + b"PK\x05\x06",
    "gzip": lambda: gzip.compress(tar(*FILES.items())),
    "zip": lambda: b"PK\x03\x04" + b"\0" * 600,
    "noise": lambda: random.Random(0).randbytes(4096),
    "empty": lambda: b"",
}  # fmt: skip


def pax(headers: dict[str, str]) -> bytes:
    info = tarfile.TarInfo("config")
    info.pax_headers = headers
    return tar(info, format=tarfile.PAX_FORMAT)


def pax_raw(records: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, len(records)
    return header.tobuf() + records.ljust(512, b"\0") + tar(("config", b""))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused_in_few_words(name: str) -> None:
    with pytest.raises(InvalidArtifact) as refusal:
        read_files(HOSTILE[name](), WANTED)
    assert len(str(refusal.value)) < 200
    assert str(refusal.value).isascii()


PICKLES = ["weights.bin", "a/OPTIMIZER.PT", "x.pkl", "a/b/c/x.pth", "x.ckpt"]


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_without_safetensors_is_refused_and_told_why(name: str) -> None:
    with pytest.raises(UnsupportedFormat, match=r"pickle.*safe_serialization"):
        read_files(tar(*FILES.items(), (name, b"")), WANTED)


@pytest.mark.parametrize("name", PICKLES)
@pytest.mark.parametrize("folder", ["", "run/"])
def test_a_pickle_beside_safetensors_is_ignored(name: str, folder: str) -> None:
    files = {"config": b"{}", "w.safetensors": b"w" * 1000}
    members = [(f"{folder}{member}", content) for member, content in files.items()]
    archive = tar((f"{folder}{name}", b"\x80\x05."), *members)

    assert read_files(archive, frozenset(files)) == files


def test_safetensors_that_no_format_reads_excuse_no_pickle() -> None:
    with pytest.raises(UnsupportedFormat, match=r"adapter_model\.bin"):
        read_files(tar(*FILES.items(), ("m.safetensors", b""), ("adapter_model.bin", b"")), WANTED)


def test_gzip_is_told_to_come_uncompressed() -> None:
    with pytest.raises(InvalidArtifact, match="uncompressed"):
        read_files(HOSTILE["gzip"](), WANTED)


@pytest.mark.timeout(120)
def test_flipped_bytes_never_do_more_than_be_refused() -> None:
    dice = random.Random(0)
    data = tar(*FILES.items(), ("x" * 200, b""), format=tarfile.PAX_FORMAT)
    for _ in range(2000):
        at = dice.choice([0, 512, 1024, 1536, 3072]) + dice.randrange(512)
        try:
            read_files(patched(data, at, dice.randbytes(dice.randint(1, 12))), WANTED)
        except InvalidUpload:
            continue
