"""Artifacts: what is saved loads; what is damaged or hostile is refused with a diagnostic."""

import errno
import hashlib
import json
import os
import shutil
import stat
import sys
import zipfile

import pytest
import torch
from torch import nn

import imcc
from imcc.ir import codes
from imcc.ir.diagnostics import DiagnosticError
from imcc.runtime import artifact

FILES = ("program.imc", "weights.safetensors", "target.toml", "report.json")


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 6), nn.Linear(8, 6)

    def forward(self, left, right):
        total = self.first(left) + self.second(right)
        return {"total": total, "parts": [torch.relu(total), 3]}


@pytest.fixture(scope="module")
def compiled():
    torch.manual_seed(0)
    data = [(torch.rand(16, 8), torch.rand(16, 8))]
    return imcc.compile(TwoInputs().eval(), (torch.zeros(1, 8),) * 2, calibration=data)


@pytest.fixture(scope="module")
def pristine(compiled, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pristine") / "a"
    compiled.save(folder)
    return folder


@pytest.fixture
def folder(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "a")


def refused(path, code):
    with pytest.raises(DiagnosticError) as caught:
        imcc.load(path)
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.code is code, diagnostic.render()
    assert diagnostic.help
    return diagnostic


def seal(folder):
    """Make the manifest agree with the files, as whoever tampers with them would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["files"]:
        content = (folder / name).read_bytes()
        manifest["files"][name] = {
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
        }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def edit_json(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


# -- what is saved loads ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out", "out.zip"])
def test_round_trip(compiled, tmp_path, name):
    compiled.save(tmp_path / name)
    loaded = imcc.load(tmp_path / name)
    assert repr(loaded.module) == repr(compiled.module)
    assert loaded.report() == compiled.report()
    assert loaded.target.name == compiled.target.name
    assert loaded.target.text == compiled.target.text
    inputs = torch.rand(5, 8), torch.rand(5, 8)
    compiled.reset()
    want, got = compiled(*inputs), loaded(*inputs)
    assert got["parts"][1] == 3
    assert torch.equal(want["total"], got["total"])
    assert torch.equal(want["parts"][0], got["parts"][0])


def test_keyword_inputs(compiled, pristine):
    left, right = torch.rand(3, 8), torch.rand(3, 8)
    compiled.reset()
    want = compiled(left, right)["total"]
    loaded = imcc.load(pristine)
    assert torch.equal(loaded(right=right, left=left)["total"], want)
    for keywords, said in (
        ({"rigth": right}, "did you mean 'right'"),
        ({"left": left}, "by position and by name"),
    ):
        with pytest.raises(DiagnosticError, match=said):
            loaded(left, **keywords)
    with pytest.raises(DiagnosticError, match="inputs are missing: left"):
        loaded(right=right)


def test_no_temporary_files_are_left_and_all_are_readable(compiled, tmp_path):
    compiled.save(tmp_path / "a")
    compiled.save(tmp_path / "a", force=True)
    compiled.save(tmp_path / "a.zip")
    compiled.save(tmp_path / "a.zip", force=True)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a", "a.zip"]
    modes = {stat.S_IMODE(item.stat().st_mode) for item in (tmp_path / "a").iterdir()}
    assert len(modes) == 1


# -- damage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_missing_file(folder, name):
    (folder / name).unlink()
    assert "missing" in refused(folder, codes.ARTIFACT).message


@pytest.mark.parametrize("name", FILES)
def test_truncated_file(folder, name):
    file = folder / name
    file.write_bytes(file.read_bytes()[:-7])
    assert name in refused(folder, codes.ARTIFACT).message


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit(folder, name):
    file = folder / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert "hash" in refused(folder, codes.ARTIFACT).message


def test_weights_of_another_program(folder):
    # The manifest agrees, but the text knows the hash of each tensor.
    file = folder / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    seal(folder)
    assert "hash" in refused(folder, codes.ARTIFACT).message


def test_target_of_another_report(folder):
    file = folder / "target.toml"
    file.write_text(file.read_text().replace("bits = 8", "bits = 7", 1))
    seal(folder)
    assert "target" in refused(folder, codes.ARTIFACT).message


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_manifest_that_is_no_json_object(folder, content):
    (folder / "manifest.json").write_bytes(content)
    refused(folder, codes.ARTIFACT)


def test_another_version(folder):
    edit_json(folder / "manifest.json", lambda data: data.update(artifact_version=99))
    assert "99" in refused(folder, codes.ARTIFACT).message


def test_required_file_not_listed(folder):
    edit_json(folder / "manifest.json", lambda data: data["files"].pop("weights.safetensors"))
    refused(folder, codes.ARTIFACT)


def test_report_of_another_form(folder):
    edit_json(folder / "report.json", lambda data: data["entry_points"]["inference"].pop("layers"))
    seal(folder)
    assert "inference.layers" in refused(folder, codes.ARTIFACT).reason


def test_program_without_inference(folder):
    file = folder / "program.imc"
    file.write_text(file.read_text().replace("@inference", "@other"))
    seal(folder)
    assert "@inference" in refused(folder, codes.ARTIFACT).message


def test_no_artifact(tmp_path):
    refused(tmp_path / "nothing", codes.ARTIFACT)
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", codes.ARTIFACT)


# -- hostile artifacts -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/b", "..", ".", "", "a\0b"])
def test_name_that_leaves_the_folder(folder, name):
    edit_json(folder / "manifest.json", lambda data: data["files"].update({name: {}}))
    refused(folder, codes.ARTIFACT_UNSAFE)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_link(folder, name):
    outside = folder.parent / "outside"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    refused(folder, codes.ARTIFACT_UNSAFE)


def test_pipe_in_place_of_the_manifest(folder):
    (folder / "manifest.json").unlink()
    os.mkfifo(folder / "manifest.json")
    refused(folder, codes.ARTIFACT)


def test_structures_import_nothing(folder, monkeypatch):
    # torch's reader of structures would import the module that a defaultdict's context names.
    (folder.parent / "imported_by_artifact.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(folder.parent)
    context = {
        "default_factory_module": "imported_by_artifact",
        "default_factory_name": "f",
        "dict_context": [],
    }
    spec = {"type": "collections.defaultdict", "context": context, "children_spec": []}
    name = '[{"__enum__": true, "fqn": "imported_by_artifact:X", "name": "a"}]'
    enum = {"type": "builtins.dict", "context": name, "children_spec": []}
    for hostile in ([1, spec], [1, enum], spec, {"collections.defaultdict": [spec]}):
        edit_json(
            folder / "report.json", lambda data, s=hostile: data["signature"].update(inputs=s)
        )
        seal(folder)
        refused(folder, codes.ARTIFACT)
    assert "imported_by_artifact" not in sys.modules


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": {"tuple": ["*"]}},
        {"inputs": "*"},
        {"outputs": {"tuple": ["*"] * 9}},
        {"constants": {"7": 1}},
        {"constants": {"1": {"a": []}}},
        {"names": [1]},
        {"outputs": {"dict": [[["unhashable"], "*"]]}},
        {"outputs": None},
    ],
)
def test_signature_that_does_not_fit(folder, change):
    edit_json(folder / "report.json", lambda data: data["signature"].update(change))
    seal(folder)
    refused(folder, codes.ARTIFACT)


def packed(path, *items):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in items:
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("name", ["../a", "/a", "b/a", "a\\b", ".."])
def test_zip_name_that_leaves_the_folder(tmp_path, name):
    refused(packed(tmp_path / "a.zip", (name, b"")), codes.ARTIFACT_UNSAFE)
    assert [item.name for item in tmp_path.iterdir()] == ["a.zip"]


def test_zip_with_a_link(tmp_path):
    link = zipfile.ZipInfo("manifest.json")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    refused(packed(tmp_path / "a.zip", (link, b"/etc/hostname")), codes.ARTIFACT_UNSAFE)


def test_zip_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(artifact, "FREE_ZIP_BYTES", 1 << 16)
    bomb = packed(tmp_path / "a.zip", ("manifest.json", bytes(1 << 22)))
    assert bomb.stat().st_size * artifact.MAX_ZIP_RATIO < 1 << 22
    assert "expands" in refused(bomb, codes.ARTIFACT_UNSAFE).message


def test_zip_that_understates_its_size(tmp_path):
    bomb = packed(tmp_path / "a.zip", ("manifest.json", bytes(1 << 20)))
    content = bomb.read_bytes().replace((1 << 20).to_bytes(4, "little"), (9).to_bytes(4, "little"))
    bomb.write_bytes(content)
    refused(bomb, codes.ARTIFACT)


def test_damaged_zip(compiled, tmp_path):
    file = tmp_path / "a.zip"
    compiled.save(file)
    content = file.read_bytes()
    for damaged in (b"", b"PK", content[: len(content) // 2], content[:200] + bytes(50)):
        file.write_bytes(damaged)
        refused(file, codes.ARTIFACT)
    middle = len(content) // 2
    file.write_bytes(content[:middle] + bytes(40) + content[middle + 40 :])
    refused(file, codes.ARTIFACT)


# -- where it is written ---------------------------------------------------------------------------


def cannot_save(compiled, path, *, force=False):
    with pytest.raises(DiagnosticError) as caught:
        compiled.save(path, force=force)
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.code is codes.OUTPUT
    return diagnostic


def test_existing_artifact_needs_force(compiled, folder):
    before = (folder / "manifest.json").stat().st_ino
    assert "--force" in cannot_save(compiled, folder).help
    assert (folder / "manifest.json").stat().st_ino == before
    compiled.save(folder, force=True)


def test_what_imcc_did_not_write_is_not_replaced(compiled, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("words")
    (tmp_path / "note").write_text("words")
    packed(tmp_path / "photos.zip", ("photo", b"p"))
    for name in ("thesis", "note", "photos.zip"):
        cannot_save(compiled, tmp_path / name, force=True)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "words"
    assert (tmp_path / "note").read_text() == "words"


def test_a_manifest_of_another_program_is_not_ours(compiled, tmp_path):
    theirs = b'{"manifest_version": 3, "name": "mine"}'
    (tmp_path / "extension").mkdir()
    (tmp_path / "extension" / "manifest.json").write_bytes(theirs)
    (tmp_path / "extension" / "mine.js").write_text("keep")
    packed(tmp_path / "extension.zip", ("manifest.json", theirs), ("mine.js", b"keep"))
    before = (tmp_path / "extension.zip").read_bytes()
    for name in ("extension", "extension.zip"):
        cannot_save(compiled, tmp_path / name, force=True)
    assert (tmp_path / "extension" / "mine.js").read_text() == "keep"
    assert (tmp_path / "extension.zip").read_bytes() == before


@pytest.mark.parametrize("name", ["a", "a.zip"])
def test_full_disk_keeps_the_old_artifact(compiled, tmp_path, monkeypatch, name):
    compiled.save(tmp_path / name)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artifact.json, "dumps", full)
    assert "free some space" in cannot_save(compiled, tmp_path / name, force=True).help
    monkeypatch.undo()
    assert [item.name for item in tmp_path.iterdir()] == [name]
    imcc.load(tmp_path / name)


def test_failed_rename_puts_the_old_artifact_back(compiled, folder, monkeypatch):
    rename, calls = os.rename, []

    def second_fails(source, target):
        calls.append(source)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(artifact.os, "rename", second_fails)
    cannot_save(compiled, folder, force=True)
    monkeypatch.undo()
    assert len(calls) == 3
    imcc.load(folder)


@pytest.mark.parametrize("failing", [{2}, {2, 3}])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError])
def test_old_artifact_outlives_a_failed_replacement(compiled, folder, monkeypatch, kind, failing):
    rename, calls = os.rename, []

    def fails(source, target):
        calls.append(source)
        if len(calls) in failing:
            raise kind(errno.EIO, "Input/output error") if len(calls) == 2 else OSError("again")
        rename(source, target)

    monkeypatch.setattr(artifact.os, "rename", fails)
    with pytest.raises((KeyboardInterrupt, DiagnosticError)):
        compiled.save(folder, force=True)
    monkeypatch.undo()
    if failing == {2}:
        assert [item.name for item in folder.parent.iterdir()] == [folder.name]
        imcc.load(folder)
    else:
        (kept,) = folder.parent.glob(".a.*/old")
        imcc.load(kept)


def test_place_that_cannot_be_written(compiled, tmp_path):
    (tmp_path / "file").write_text("")
    cannot_save(compiled, tmp_path / "file" / "a")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(compiled, tmp_path):
    tmp_path.chmod(0o500)
    try:
        cannot_save(compiled, tmp_path / "a")
    finally:
        tmp_path.chmod(0o700)
