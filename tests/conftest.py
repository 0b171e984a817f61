"""What all tests share: a kernel cache of their own, so that none reads or leaves anything in the user's."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

# Set when pytest starts, before any module of attncc looks, and inherited by the processes that tests start.
_folder = tempfile.mkdtemp(prefix="attncc-tests-")
os.environ["ATTNCC_CACHE_DIR"] = _folder
atexit.register(shutil.rmtree, _folder, ignore_errors=True)
