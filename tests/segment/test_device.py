"""Which of torch's devices a segment computes on: never the CPU in the place of a device that its plan counts on."""

import pytest
import torch

from splitinference_segment.settings import Settings, SettingsError
from splitinference_segment.torch_models.device import torch_device


def test_the_cpu_where_that_is_said() -> None:
    assert torch_device("cpu") == "cpu"


def test_without_a_class_the_gpu_where_there_is_one() -> None:
    assert torch_device("") == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has a device")
@pytest.mark.parametrize("asked", ["cuda", "rocm", "xpu", "npu"])
def test_a_device_that_torch_does_not_see_ends_the_segment_with_that_reason(asked: str) -> None:
    with pytest.raises(SettingsError, match=rf"SI_DEVICE is '{asked}', and torch .* sees no such device"):
        torch_device(asked)


def test_the_class_comes_from_the_environment() -> None:
    given = {"SI_SEGMENT": "a", "SI_MODEL_NAME": "m", "SI_MODEL_PATH": "/m", "SI_LAYERS": "0:1", "SI_INSECURE": "true", "SI_DEVICE": "cuda"}
    assert Settings.from_environment(given).device == "cuda"
