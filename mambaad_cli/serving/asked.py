"""What a request asks for, and the photos in its body: a raw image, raw pixels, or a form with several images."""

import asyncio
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from mambaad_cli.serving.photos import CHANNELS, MAX_PIXELS, Photo

KNOWN = ("class", "regions", "map", "name", "width", "height", "channels")  # parameters of the query
MAPS = ("png", "npy")
BODY_SECONDS = 60.0  # in which a body must have come whole


@dataclass(frozen=True)
class Limits:
    """How large a request may be."""

    max_bytes: int = 64 * 2**20  # of its body
    max_pixels: int = MAX_PIXELS  # of each photo
    max_photos: int = 64


@dataclass(frozen=True)
class Asked:
    """What a request asks for."""

    class_name: str | None = None
    regions: bool = False
    map: str = ""  # png, npy or none
    name: str = ""
    shape: tuple[int, int, int] | None = None  # of raw pixels: height, width, channels

    @classmethod
    def of(cls, query: Mapping[str, str]) -> "Asked":
        """Raises HTTPException for what is not understood.

        >>> Asked.of({"regions": "", "width": "4", "height": "2"})
        Asked(class_name=None, regions=True, map='', name='', shape=(2, 4, 3))
        """
        if unknown := sorted(set(query) - set(KNOWN)):
            raise HTTPException(400, f"no parameter {unknown[0]!r}: choose from {', '.join(KNOWN)}")
        if query.get("map", "png") not in MAPS:
            raise HTTPException(400, f"map={query['map']}: choose from {', '.join(MAPS)}")
        if query.get("regions", "") not in ("", "0", "1"):
            raise HTTPException(400, f"regions={query['regions']}: write regions, or regions=0")
        regions = query.get("regions", "0") != "0"
        return cls(
            query.get("class") or None, regions, query.get("map", ""), query.get("name", ""), _pixels_shape(query)
        )


def _pixels_shape(query: Mapping[str, str]) -> tuple[int, int, int] | None:
    """Height, width and channels of raw pixels; None where the body is an image file."""
    if not {"width", "height", "channels"} & set(query):
        return None
    numbers = {}
    for side in ("width", "height", "channels"):
        text = query.get(side, "3" if side == "channels" else "")
        if not (text.isascii() and text.isdecimal() and 0 < len(text) < 10 and int(text) > 0):
            raise HTTPException(400, f"raw pixels need width and height, numbers of pixels: {side}={text}")
        numbers[side] = int(text)
    if numbers["channels"] not in CHANNELS:
        raise HTTPException(400, f"channels={numbers['channels']}: choose from {', '.join(map(str, CHANNELS))}")
    return numbers["height"], numbers["width"], numbers["channels"]


def is_form(request: Request) -> bool:
    """Whether the body is a form, which may hold several photos."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == "multipart/form-data"


def body_length(request: Request, limits: Limits) -> int:
    """How many bytes the body of a request has, or may have. Raises HTTPException where that is too many."""
    declared = request.headers.get("content-length", "")
    length = int(declared) if declared.isdecimal() else limits.max_bytes
    if length > limits.max_bytes:
        raise _too_large(limits)
    return length


class Body:
    """The body of a request, as long as it is not too large or too slow.

    request: gives what comes of the body.
    bytes: that came.
    """

    def __init__(self, request: Request, limits: Limits) -> None:
        self.request, self.limits = Request(request.scope, self._limited), limits
        self.bytes = 0
        self._receive, self._ended = request.receive, False
        self._until = asyncio.get_running_loop().time() + BODY_SECONDS

    async def discard(self) -> None:
        """Read what is left of it, until its time is over: a client that still sends would not see the answer."""
        with suppress(asyncio.TimeoutError):
            while not self._ended:
                await self._next()

    async def _next(self) -> Message:
        left = self._until - asyncio.get_running_loop().time()
        message = await asyncio.wait_for(self._receive(), max(left, 0.001))
        self._ended = not message.get("more_body", False)  # also where the client has gone
        return message

    async def _limited(self) -> Message:
        try:
            message = await self._next()
        except asyncio.TimeoutError:
            raise HTTPException(408, f"the body did not come within {BODY_SECONDS:g} seconds") from None
        self.bytes += len(message.get("body", b""))
        if self.bytes > self.limits.max_bytes:
            raise _too_large(self.limits)
        return message


async def photos_of(body: Body, asked: Asked) -> list[Photo]:
    """The photos in the body of a request. Raises HTTPException where it is too large, too slow, or not understood."""
    request, limits = body.request, body.limits
    if is_form(request):
        if asked.shape is not None:
            raise HTTPException(400, "raw pixels are a body of their own, not a form")
        return await _of_form(request, limits)
    data = await request.body()
    if not data:
        raise HTTPException(400, "the body is empty: send an image file, or a form with several")
    if asked.shape is not None:
        _check_pixels(asked.shape, len(data), limits)
    return [Photo(asked.name, data, asked.shape)]


def _check_pixels(shape: tuple[int, int, int], length: int, limits: Limits) -> None:
    if math.prod(shape) != length:
        height, width, channels = shape
        raise HTTPException(
            400, f"{length} bytes are not the {width}×{height} pixels of {channels} bytes that the query tells"
        )
    if shape[0] * shape[1] > limits.max_pixels:
        raise HTTPException(413, f"more than {limits.max_pixels} pixels")


async def _of_form(request: Request, limits: Limits) -> list[Photo]:
    """The files of a form, in their order, whatever their fields are called."""
    async with request.form(max_files=limits.max_photos, max_fields=limits.max_photos) as form:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        photos = [Photo(file.filename or "", await file.read()) for file in files]
    if not photos:
        raise HTTPException(400, "the form has no file: send at least one image")
    return photos


def _too_large(limits: Limits) -> HTTPException:
    return HTTPException(413, f"the body is larger than {limits.max_bytes} bytes")
