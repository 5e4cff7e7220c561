"""Which of torch's devices a segment computes on."""

import torch

from splitinference_segment.settings import SettingsError

CPU = "cpu"


def torch_device(asked: str) -> str:
    """torch's name of the device of a class (cuda, rocm, xpu, …); for cpu the CPU, and for no class a CUDA device where there is one.

    Weights were planned for the device's memory. Where torch sees no device, the CPU would be no substitute, so SettingsError says that.
    """
    if not asked:
        return "cuda" if torch.cuda.is_available() else CPU
    if asked == CPU:
        return CPU
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if found is None:
        message = (
            f"SI_DEVICE is {asked!r}, and torch {torch.__version__} in this image sees no such device: is the image that of the class?"
        )
        raise SettingsError(message)
    return str(found.type)
