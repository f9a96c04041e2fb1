"""The export's folder: whole or not at all, and never in the place of something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from genprop.errors import GenPropError
from genprop.export.bundle import export_bundle
from genprop.export.folder import check_output, file_hashes, versions
from genprop.folders import whole_folder
from genprop.manifest import read_manifest


def test_folder_appears_whole_and_replaces_an_older_one(tmp_path: Path) -> None:
    out = tmp_path / "new" / "export"
    for text in ("old", "new"):
        with whole_folder(out) as folder:
            (folder / f"{text}.txt").write_text(text)
            assert not (out / f"{text}.txt").exists()
    assert [p.name for p in out.iterdir()] == ["new.txt"]
    assert [p.name for p in out.parent.iterdir()] == ["export"]


def test_nothing_is_left_when_the_export_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "export") as folder:
        (folder / "half").write_text("")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_unwritable_output(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GenPropError, match="cannot be written"), whole_folder(tmp_path / "file" / "export"):
        pass


def test_output_in_use_is_refused_before_any_work(tmp_path: Path) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    with pytest.raises(GenPropError, match="holds other things"):
        export_bundle("tiny", tmp_path)
    with pytest.raises(GenPropError, match="is a file"):
        export_bundle("tiny", precious)
    assert precious.read_text() == "mine"


def test_empty_folder_and_older_export_are_taken(tmp_path: Path) -> None:
    check_output(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    check_output(tmp_path)


def test_hashes_and_versions(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert file_hashes(tmp_path) == {
        "empty": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    }
    assert set(versions()) == {"genprop", "torch", "onnx", "onnxscript", "onnxruntime"}


def test_folder_without_a_manifest_and_manifest_without_sense(tmp_path: Path) -> None:
    with pytest.raises(GenPropError, match="is not an export"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 1}')
    with pytest.raises(GenPropError, match="cannot be read"):
        read_manifest(tmp_path)
