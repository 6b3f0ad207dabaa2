"""Thousands of changed meta files and manifests: the value, or a `FormatError`, and little memory."""

from __future__ import annotations

from pathlib import Path

from tests.property.hostile_json import run

CASES = 4000
SEED = 20262


def test_a_meta_is_read_as_json_reads_it_and_a_manifest_to_the_byte(tmp_path: Path) -> None:
    tally = run(SEED, CASES, tmp_path)
    print(tally)
    assert tally.failures == []
    assert tally.cases == CASES
    for kind in ("meta", "manifest"):
        assert tally.outcomes[f"{kind}: read"] > 100
        assert tally.outcomes[f"{kind}: refused"] > 100
