"""Images of a known size, from files that may come from anybody."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from mixjax import _validate
from mixjax.datasets import _files

# others are handed to other programs (EPS to Ghostscript), or to decoders hardly anybody looks at
FORMATS = ("JPEG", "PNG")


def decode(source: Path | bytes, shape: tuple[int, int, int], what: Any, remedy: str) -> np.ndarray:
    """The pixels of a JPEG or PNG image, of which nothing is decoded before its size is known.

    Args:
      source: the file, or its content.
      shape: height, width and channels, of which there are 1 or 3.
      what: names the image in errors.
      remedy: the last sentence of an error.

    Returns:
      `uint8[shape]`.

    Raises:
      InputError: for another format or size, or an image that is cut or broken.
    """
    library: Any = _files.needed("PIL.Image", "experiments")
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    broken = (OSError, SyntaxError, ValueError, EOFError)
    bombs = (library.DecompressionBombError, library.DecompressionBombWarning)
    try:
        with library.open(file, formats=FORMATS) as image:
            size = (image.height, image.width)
            if size == shape[:2]:
                return np.asarray(image.convert("L" if shape[2] == 1 else "RGB")).reshape(shape)
    except (*broken, *bombs) as error:
        raise _validate.InputError(
            f"expected a {' or '.join(FORMATS)} image in {what}; it can't be decoded ({error}). "
            f"{remedy}"
        ) from None
    raise _validate.InputError(
        f"expected an image of {shape[0]} x {shape[1]} pixels in {what}; got {size[0]} x "
        f"{size[1]}. {remedy}"
    )
