"""What `prosemill up` decides before and beside its servers: their ports, and the key by which it asks the service."""

import re
import socket
from pathlib import Path

import pytest

from prosemill.errors import ProsemillError
from prosemill.orchestration.house import _key, refuse_wrong_ports
from tests.end_to_end.house import PORT_OPTIONS
from tests.ports import free_ports


@pytest.mark.parametrize("option", PORT_OPTIONS)
def test_a_taken_port_is_named_with_the_option_that_chooses_another(option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        ports = dict(zip(PORT_OPTIONS, free_ports(len(PORT_OPTIONS)), strict=True)) | {option: taken}
        with pytest.raises(ProsemillError) as found:
            refuse_wrong_ports(ports)
    assert re.search(rf"\b{taken}\b.*{option}", str(found.value))


@pytest.mark.parametrize("wrong", [{"--prefect-port": 70000}, {"--mlflow-port": -1}, {"--prefect-port": 0}])
def test_a_port_that_cannot_be_is_refused(wrong: dict[str, int]) -> None:
    ports = dict(zip(PORT_OPTIONS, free_ports(len(PORT_OPTIONS)), strict=True)) | wrong
    (option,) = wrong
    with pytest.raises(ProsemillError, match=option):
        refuse_wrong_ports(ports)


def test_ports_that_are_the_same_are_refused() -> None:
    (port,) = free_ports(1)
    with pytest.raises(ProsemillError, match=f"--prefect-port and --mlflow-port and --service-port are both {port}"):
        refuse_wrong_ports(dict.fromkeys(PORT_OPTIONS, port))


def test_it_has_a_key_wherever_the_services_keys_are(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("\n of-the-file \nanother\n", encoding="utf-8")
    assert _key({}) is None
    assert _key({"PROSEMILL_API_KEYS": " first , second"}) == "first"
    assert _key({"PROSEMILL_API_KEYS_FILE": str(file)}) == "of-the-file"
    with pytest.raises(FileNotFoundError):
        _key({"PROSEMILL_API_KEYS_FILE": str(tmp_path / "none")})
