"""`auto` picks what the hardware is good at, and what a device cannot do is refused."""

import pytest
import torch

from prosemill import precision
from prosemill.errors import ProsemillError
from prosemill.precision import choose_arithmetic


@pytest.mark.parametrize(("multiplies_bf16", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_on_a_cpu(monkeypatch: pytest.MonkeyPatch, multiplies_bf16: bool, expected: str) -> None:
    monkeypatch.setattr(precision, "_cpu_multiplies_bf16", lambda: multiplies_bf16)
    assert choose_arithmetic("auto", torch.device("cpu")) == expected


@pytest.mark.parametrize(("capability", "expected"), [((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_auto_on_a_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert choose_arithmetic("auto", torch.device("cuda")) == expected


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(ProsemillError, match="fp16 needs a GPU"):
        choose_arithmetic("fp16", torch.device("cpu"))


@pytest.mark.parametrize("given", ["bf16", "fp32"])
def test_what_is_asked_for_is_used(given: precision.Arithmetic) -> None:
    assert choose_arithmetic(given, torch.device("cpu")) == given
