"""The HTML report stands alone, and shows every task with what was tried."""

from pathlib import Path

import pytest
from pretended import Pretended, task

from attncc.bench.peak import Peak
from attncc.target import detect
from attncc.tuning import session
from attncc.tuning.database import Database
from attncc.tuning.result import Tuned
from attncc.tuning.search import Budget


def test_the_report_of_a_run(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    database, peak = Database(tmp_path / "db"), Peak(2, 100.0, None, 20.0)
    found = session.run([task(), task(300)], Budget(9), Pretended(), database, peak=lambda: peak)
    found.skipped.append(("B1 <odd>", "it is"))
    tuned = Tuned(found, detect(), database.path)
    page = tuned.html(tmp_path / "report.html").read_text()
    assert page.count("<svg") == 3 and page.count("<h2>") == 3  # the roofline, and a curve for each task
    assert "<code>query_block</code>" in page and "crashed" in page and "B1 &lt;odd&gt;" in page
    assert not any(word in page for word in ("<script", "src=", "@import", "<link"))
    assert "25.0%" in page and "+25.0%" in str(tuned) and "B1 <odd> was not tuned: it is" in str(tuned)
