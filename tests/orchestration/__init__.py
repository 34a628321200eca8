"""Tests of runs as a whole. Prefect makes its home when it is imported: in the tests that is a folder of their own, and gone at the end."""

import os
import tempfile

HOME = tempfile.TemporaryDirectory(prefix="prosemill-prefect-", ignore_cleanup_errors=True)  # deleted with this module
os.environ |= {"PREFECT_HOME": HOME.name, "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
