"""These tests need libllama as the image builds it (SI_LIBLLAMA names its folder); without it none is collected."""

from importlib.util import find_spec

collect_ignore_glob: list[str] = []
if find_spec("numpy") is None or find_spec("splitinference_segment") is None:
    collect_ignore_glob = ["*.py"]
else:
    from splitinference_segment.llamacpp.library import FOLDER, NAME

    if not (FOLDER / NAME).exists():
        collect_ignore_glob = ["*.py"]
