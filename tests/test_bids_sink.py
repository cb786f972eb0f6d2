"""Names, atomic writing, hashes."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_petsynth.bids.naming import PATTERNS, entities_of, output_path, sidecar_path
from bids_petsynth.bids.sink import (
    Sink,
    check_writable,
    hash_file,
    hash_key,
    hash_settings,
    make_hash_key,
    tsv_text,
    write_atomically,
)
from bids_petsynth.errors import UsageError
from bids_petsynth.types import Case

ONE = Case("01", None, None)
TWO = Case("01", "a", None)
AFFINE = np.array([[0, -2, 0, 10], [2, 0, 0, -5], [0, 0, 2, 3], [0, 0, 0, 1.0]])
MEAN = output_path("pet_mean", ONE, tracer="AV45")


def test_names() -> None:
    assert MEAN.as_posix() == "sub-01/pet/sub-01_trc-AV45_space-T1w_res-2_desc-synthMean_pet.nii.gz"
    draw = output_path("pet_draw", TWO, tracer="FDG", draw=3, space="MNI152NLin2009cAsym")
    assert draw.as_posix() == (
        "sub-01/ses-a/pet/sub-01_ses-a_trc-FDG_space-MNI152NLin2009cAsym_res-2_desc-synth03_pet.nii.gz"
    )
    assert sidecar_path(draw).name.endswith("desc-synth03_pet.json")
    assert entities_of(draw)["trc"] == "FDG"
    assert output_path("raw_pet", ONE, tracer="AV45").name == "sub-01_trc-AV45_rec-sim_pet.nii.gz"
    assert output_path("regions", ONE, tracer="AV45").name == "sub-01_trc-AV45_desc-synthMean_seg-petsynth_tacs.tsv"


def test_entities_stand_in_the_order_of_bids() -> None:
    order = ["sub", "ses", "trc", "rec", "run", "from", "to", "mode", "space", "res", "label", "desc", "seg"]
    for pattern in PATTERNS.values():
        found = [key for key in re.findall(r"_([a-z]+)-", "_" + pattern.split("/")[-1]) if key in order]
        assert found == sorted(found, key=order.index), pattern


@pytest.mark.parametrize(
    "kind, entities", [("pet_mean", {}), ("t1w", {"tracer": "FDG"}), ("pet_mean", {"tracer": "a_b"})]
)
def test_wrong_entities(kind: str, entities: dict[str, str]) -> None:
    with pytest.raises(ValueError):
        output_path(kind, ONE, **entities)


def test_image_round_trip_and_header(tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(size=(4, 5, 6))
    path = Sink(tmp_path).save_image(MEAN, data, AFFINE, {"Units": "unitless"})
    image = nib.load(path)
    assert image.get_data_dtype() == np.float32
    np.testing.assert_array_equal(np.asarray(image.dataobj), data.astype(np.float32))
    for get in (image.get_sform, image.get_qform):
        affine, code = get(coded=True)
        np.testing.assert_allclose(affine, AFFINE, atol=1e-6)
        assert code == 1
    assert image.header.get_xyzt_units()[0] == "mm"
    assert image.dataobj.slope == 1 and image.dataobj.inter == 0


@pytest.mark.parametrize(
    "data, dtype",
    [
        (np.ones((2, 2, 2), bool), np.uint8),
        (np.full((2, 2, 2), 248, np.int64), np.uint8),
        (np.full((2, 2, 2), -300), np.int16),
        (np.full((2, 2, 2), 70000), np.int32),
        (np.ones((2, 2, 2), np.float16), np.float32),
    ],
)
def test_stored_type(tmp_path: Path, data: np.ndarray, dtype: type) -> None:
    image = nib.load(Sink(tmp_path).save_image(Path("x.nii.gz"), data, AFFINE))
    assert image.get_data_dtype() == dtype
    np.testing.assert_array_equal(np.asarray(image.dataobj), data)


def test_same_image_same_bytes(tmp_path: Path) -> None:
    data = np.arange(27.0).reshape(3, 3, 3)
    paths = [Sink(tmp_path).save_image(Path(name), data, AFFINE) for name in ("a/x.nii.gz", "b/other.nii.gz")]
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    assert first[3] == 0 and first[4:8] == bytes(4)  # RFC 1952: no flags (so no name), no time
    assert gzip.decompress(first)[344:347] == b"n+1"


def test_current_only_with_image_sidecar_and_both_hashes(tmp_path: Path) -> None:
    sink = Sink(tmp_path, settings_hash="s", input_hash="i")
    assert not sink.is_current(MEAN)
    image = sink.save_image(MEAN, np.zeros((2, 2, 2)), AFFINE, {"B": 1, "A": np.float32(0.5)})
    sidecar = sidecar_path(image)
    assert json.loads(sidecar.read_text()) == {"B": 1, "A": 0.5, "InputHash": "i", "SettingsHash": "s"}
    assert sink.is_current(MEAN) and sink.is_current(sidecar_path(MEAN))
    assert not sink.for_input("other").is_current(MEAN)
    assert not Sink(tmp_path, "t", "i").is_current(MEAN)
    sidecar.write_text("{")
    assert not sink.is_current(MEAN)
    sink.save_image(MEAN, np.zeros((2, 2, 2)), AFFINE, {})
    image.unlink()
    assert not sink.is_current(MEAN) and not sink.is_current(sidecar_path(MEAN))


def test_killed_between_image_and_sidecar_is_not_current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = Sink(tmp_path, "old", "i"), Sink(tmp_path, "new", "i")
    old.save_image(MEAN, np.zeros((2, 2, 2)), AFFINE, {})
    monkeypatch.setattr("bids_petsynth.bids.sink.write_bytes", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        new.save_image(MEAN, np.ones((2, 2, 2)), AFFINE, {})
    assert not old.is_current(MEAN) and not new.is_current(MEAN)


def test_failure_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    write_atomically(path, lambda file: file.write(b"old"))

    def half(file):
        file.write(b"ne")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_atomically(path, half)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["x.txt"]


def test_killed_process_leaves_no_half_file(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from bids_petsynth.bids.sink import write_atomically\n"
        "def write(file): file.write(b'new'); file.flush(); os.kill(os.getpid(), 9)\n"
        "write_atomically(Path(sys.argv[1]), write)"
    )
    path = tmp_path / "x.txt"
    path.write_bytes(b"old")
    subprocess.run([sys.executable, "-c", code, str(path)], check=False, cwd=Path(__file__).parents[1])
    assert path.read_bytes() == b"old"
    (leftover,) = (p for p in tmp_path.iterdir() if p != path)
    assert leftover.name.startswith(".") and leftover.read_bytes() == b"new"


def test_writers_at_the_same_time_leave_one_whole_file(tmp_path: Path) -> None:
    path, contents = tmp_path / "x", [bytes([i]) * 100_000 for i in range(4)]
    threads = [
        threading.Thread(target=lambda c=c: [write_atomically(path, lambda f: f.write(c)) for _ in range(5)])
        for c in contents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents and os.listdir(tmp_path) == ["x"]


def test_file_mode_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = Sink(tmp_path).save_text(Path("x.txt"), "x")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_unwritable_folder_is_named(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "out")
    assert os.listdir(tmp_path / "new" / "out") == []
    file = tmp_path / "file"
    file.write_text("")
    for out in (file, file / "out"):
        with pytest.raises(UsageError, match=re.escape(str(out))):
            check_writable(out)
        with pytest.raises(UsageError, match=re.escape(str(out))):
            Sink(out).save_text(Path("x.txt"), "x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="cannot be written to"):
        check_writable(tmp_path)


def test_tsv_text() -> None:
    rows = [{"a": 1.23456789, "b": None, "c": True}, {"a": float("nan"), "b": "two\twords\n", "c": np.int64(3)}]
    assert tsv_text(rows) == "a\tb\tc\n1.23457\tn/a\ttrue\nn/a\ttwo words\t3\n"
    assert tsv_text(rows, ["b"]) == "b\nn/a\ntwo words\n"


def test_the_key_of_hashes_is_one_for_all_tasks(tmp_path: Path) -> None:
    assert hash_key(tmp_path) == ""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: make_hash_key(tmp_path), range(16)))
    key = hash_key(tmp_path)
    make_hash_key(tmp_path)
    assert len(key) == 64 and hash_key(tmp_path) == key
    assert [p.name for p in (tmp_path / "logs").iterdir()] == ["hashes.key"]
    assert (tmp_path / "logs" / "hashes.key").stat().st_mode & 0o077 == 0
    make_hash_key(tmp_path / "other")
    assert hash_key(tmp_path / "other") != key


def test_a_key_that_cannot_be_read_is_not_done_without(tmp_path: Path, monkeypatch) -> None:
    """As that of another user, who made the folder; a hash without it would give clinical values away."""
    make_hash_key(tmp_path)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    for use in (hash_key, make_hash_key):
        with pytest.raises(UsageError, match=r"hashes\.key cannot be read .*chmod g\+r.* folder of your own"):
            use(tmp_path)


def test_hashes(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Settings:
        seed: int
        path: Path

    (tmp_path / "x").write_bytes(b"abc")
    assert hash_file(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    assert hash_settings({"b": 1, "a": [2.5]}) == hashlib.sha256(b'{"a":[2.5],"b":1}').hexdigest()
    assert hash_settings(Settings(1, Path("x"))) == hash_settings({"path": "x", "seed": np.int64(1)})
    assert hash_settings({"a": 1}) != hash_settings({"a": 2})
