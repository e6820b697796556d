from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench_samples import record

from convgru_fused.bench.results import SCHEMA, Document, load


def test_round_trip(document: Document, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "bench.json"
    document.save(path)
    assert load(path) == document
    assert [p.name for p in path.parent.iterdir()] == ["bench.json"]  # no temporary file left
    assert json.loads(path.read_text())["schema"] == SCHEMA == "convgru_fused.bench/1"


def test_saving_again_replaces(document: Document, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    document.save(path)
    document.rows.pop()
    document.video = None
    document.save(path)
    assert load(path) == document


def test_a_failed_save_leaves_the_old_file(document: Document, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    document.save(path)
    before = path.read_text()
    document.settings["seed"] = object()  # cannot become JSON
    with pytest.raises(TypeError):
        document.save(path)
    assert path.read_text() == before


def test_records_of_all_parts(document: Document) -> None:
    workloads = [record.workload for record in document.records()]
    assert workloads[0] == "video_pool2" and workloads[-1] == "long_small[T=64]" and len(workloads) == 14


def test_workload_entry(document: Document) -> None:
    entry = document.workloads["sequence"]
    assert (entry["T"], entry["N"], entry["C"], entry["K"], entry["H"], entry["W"]) == (3, 2, 5, 4, 6, 7)
    assert entry["kernels"] == [[3, 3]] and entry["flops"]["train"] == 3 * entry["flops"]["forward"]


def _changed(found: dict, change) -> dict:
    change(found)
    return found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(schema="convgru_fused.bench/0"), "expected schema '.*/1', got '.*/0'"),
        (lambda d: d.pop("schema"), "expected schema '.*/1', got None"),
        (lambda d: d.pop("machine"), r"expected machine \(dict\), found no such field"),
        (lambda d: d.update(rows={}), "expected rows to be list, got {}"),
        (lambda d: d.update(rows=[3]), r"expected rows\[0\] to be an object, got int"),
        (
            lambda d: d["rows"][1].pop("median"),
            r"expected rows\[1\].median \(float or int or null\), found no",
        ),
        (lambda d: d["rows"][0].update(median="fast"), r"expected rows\[0\].median to be .*, got 'fast'"),
        (lambda d: d["rows"][0].update(status="good"), r"expected rows\[0\].status to be one of .*'good'"),
        (
            lambda d: d["rows"][0].update(errors={"output": {"largest": 1}}),
            r"expected rows\[0\].errors to be",
        ),
        (lambda d: d["video"].pop("frames"), r"expected video.frames \(int\), found no such field"),
        (lambda d: d["video"]["rows"][0].pop("note"), r"expected video.rows\[0\].note"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_a_result(document: Document, tmp_path: Path, change, words: str) -> None:
    path = tmp_path / "bench.json"
    document.save(path)
    path.write_text(json.dumps(_changed(json.loads(path.read_text()), change)))
    with pytest.raises(ValueError, match=words) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: expected")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "expected JSON, got"),
        (b"\xff\x00", "expected JSON, got"),
        (b"[1]", "expected a JSON object, got list"),
    ],
    ids=["empty", "binary", "list"],
)
def test_what_is_not_json(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "bench.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        load(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none.json: expected a benchmark result, got No such file"):
        load(tmp_path / "none.json")


def test_whole_models_are_kept(document: Document, tmp_path: Path) -> None:
    document.models = [record("fused", 1.0, "raft_e2e"), record("fused", 0.2, "raft_e2e[ConvGRU forward]")]
    document.save(tmp_path / "a.json")
    found = load(tmp_path / "a.json")
    assert found.models == document.models
    only = found.only(["raft_e2e"])
    assert only.models == document.models and not only.rows


def test_older_documents_have_no_models(document: Document, tmp_path: Path) -> None:
    document.save(tmp_path / "a.json")
    found = json.loads((tmp_path / "a.json").read_text())
    del found["models"]
    (tmp_path / "a.json").write_text(json.dumps(found))
    assert load(tmp_path / "a.json").models == []
