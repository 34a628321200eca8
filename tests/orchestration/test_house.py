"""How `prosemill up` asks the service that it has started."""

from pathlib import Path

import pytest

from prosemill.orchestration.house import _key


def test_it_has_a_key_wherever_the_services_keys_are(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("\n of-the-file \nanother\n", encoding="utf-8")
    assert _key({}) is None
    assert _key({"PROSEMILL_API_KEYS": " first , second"}) == "first"
    assert _key({"PROSEMILL_API_KEYS_FILE": str(file)}) == "of-the-file"
    with pytest.raises(FileNotFoundError):
        _key({"PROSEMILL_API_KEYS_FILE": str(tmp_path / "none")})
