"""The records that ship with attncc: of this release, whole, and worth their place."""

from pathlib import Path

import pytest

from attncc.tuning.database import Database
from attncc.tuning.inventory import essence, meaning
from attncc.tuning.sources import SHIPPED


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.jsonl")), ids=lambda path: path.name)
def test_shipped_records_are_of_this_release_and_no_more_than_needed(path: Path) -> None:
    """After a new version or release of TVM: `attncc tune --check` on the machine, then `attncc db export`."""
    contents = Database(path, foreign=True).read()
    assert contents.records and not contents.rejected
    for record in contents.records:
        assert record.versions.differs() is None
        assert record.gain is not None
        assert "no attention" not in meaning(record)
    assert sorted(r.to_json() for r in essence(contents.records)) == sorted(r.to_json() for r in contents.records)
