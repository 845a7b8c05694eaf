"""The database module, by itself: the contract suites cover what it does."""

from __future__ import annotations

import subprocess
import sys

# One thread stops in the middle of an import that belongs to sqlalchemy.orm, as a slow disk can make it.
STATEMENT_DURING_AN_IMPORT = """
import importlib, sys, threading
import typeless_grpc.stores.database
import sqlalchemy as sa

reached, go_on = threading.Event(), threading.Event()

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "sqlalchemy.orm.interfaces":
            reached.set()
            go_on.wait(20)

sys.meta_path.insert(0, Slow())
importing = threading.Thread(target=lambda: (importlib.import_module("sqlalchemy.orm"), reached.set()))
importing.start()
assert reached.wait(20)
try:
    sa.column("job_id").in_([])
finally:
    go_on.set()
    importing.join()
"""


def test_a_statement_works_while_another_thread_imports_sqlalchemy_orm():
    done = subprocess.run(
        [sys.executable, "-c", STATEMENT_DURING_AN_IMPORT], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
