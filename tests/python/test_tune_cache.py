"""The file of measurements: damaged, foreign, shared, not writable."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

import tersor
from tersor import tune_cache
from tersor.tune_cache import TuneCache, cache_key, parse


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TERSOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tune_cache, "_warned", set())
    return tmp_path / "cache"


GOOD = {"schema": "tersor.tune/1", "key": "OWN", "layers": {"a": {"1": [1.0, 2.0]}}}
TIMES = (100.0, 50.0)


def write(content: bytes) -> Path:
    """Puts the content where the cache for one thread lies; "OWN" stands for its key."""
    path = TuneCache(cache_key(1)).path
    assert path is not None
    path.parent.mkdir()
    path.write_bytes(content.replace(b'"OWN"', json.dumps(cache_key(1)).encode()))
    return path


def test_a_good_file_is_taken_as_it_is() -> None:
    write(json.dumps(GOOD).encode())
    assert TuneCache(cache_key(1)).get("a", 1) == (1.0, 2.0)
    assert TuneCache(cache_key(1), persistent=False).get("a", 1) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe not JSON",
        b"[" * 100_000,
        b"[1, 2]",
        json.dumps({**GOOD, "key": {"cpu": "another"}}).encode(),
        json.dumps({**GOOD, "schema": "tersor.tune/99"}).encode(),
        json.dumps({**GOOD, "layers": []}).encode(),
        json.dumps({**GOOD, "layers": {"a": [1]}}).encode(),
        json.dumps({**GOOD, "layers": {"a": {"one": [1, 2]}}}).encode(),
        json.dumps({**GOOD, "layers": {"a": {"1": [1]}}}).encode(),
        json.dumps({**GOOD, "layers": {"a": {"1": [-1, 2]}}}).encode(),
        json.dumps({**GOOD, "layers": {"a": {"1": [1, float("nan")]}}}).encode(),
        json.dumps({**GOOD, "layers": {"a": {"1": [True, 2]}}}).encode(),
    ],
)
def test_a_damaged_or_foreign_file_is_made_anew_with_one_warning(content: bytes) -> None:
    path = write(content)
    with pytest.warns(RuntimeWarning, match="is not a cache of these measurements") as caught:
        cache = TuneCache(cache_key(1))
    assert cache.get("a", 1) is None
    cache.put("a", 1, TIMES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.save()
        assert TuneCache(cache_key(1)).get("a", 1) == TIMES
    assert len(caught) == 1
    assert parse(path.read_bytes(), cache_key(1)) == {"a": {1: TIMES}}


def test_a_folder_that_cannot_be_written_to_means_memory_only_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    monkeypatch.setenv("TERSOR_CACHE_DIR", str(blocker / "cache"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            cache = TuneCache(cache_key(1))
            cache.put("a", 1, TIMES)
            cache.save()
            cache.save()
            assert cache.get("a", 1) == TIMES
    (warning,) = caught
    assert warning.category is RuntimeWarning
    assert "in memory only" in str(warning.message)
    assert blocker.read_text() == "in the way"


def test_two_processes_do_not_lose_each_others_measurements() -> None:
    one, other = TuneCache(cache_key(1)), TuneCache(cache_key(1))
    one.put("a", 1, TIMES)
    other.put("b", 4, (3.0, 4.0))
    one.save()
    other.save()
    again = TuneCache(cache_key(1))
    assert (again.get("a", 1), again.get("b", 4)) == (TIMES, (3.0, 4.0))


def test_what_is_not_to_be_remembered_lasts_as_long_as_the_cache(folder: Path) -> None:
    cache = TuneCache(cache_key(1))
    cache.put("a", 1, TIMES, remember=False)
    cache.save()
    assert cache.get("a", 1) == TIMES
    assert not folder.exists()


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TERSOR_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert tersor.doctor(speed=False).get("cache", "folder").value.startswith(str(tmp_path / "xdg" / "tersor"))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the specification says: ignore it
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(TuneCache(cache_key(1)).path).startswith(str(tmp_path / ".cache" / "tersor"))
