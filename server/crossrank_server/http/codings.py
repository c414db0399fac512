"""Decompress request bodies piece by piece, so that no body costs more than its limit.

Source: https://www.rfc-editor.org/rfc/rfc9110#section-8.4 (Content-Encoding)
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterable, Iterator
from typing import Protocol

from crossrank.errors import InvalidRequest, UnsupportedEncoding

if sys.version_info >= (3, 14):
    import compression.zstd as zstd
else:
    import backports.zstd as zstd

CODINGS = ("gzip", "deflate", "zstd")
_MAX_CODINGS = 3
# Input and output of one step. A step of a decompression bomb, too, takes about a millisecond.
_INPUT_BYTES = 16_384
_OUTPUT_BYTES = 262_144
# gzip members or zstd frames in a row. Each costs some 10 us however small it is.
_MAX_MEMBERS = 1000
# 8 MB. Source: https://www.rfc-editor.org/rfc/rfc9659 (the largest window of the content coding zstd)
_MAX_ZSTD_WINDOW_LOG = 23


class BodyDecoder:
    """Undo the content codings of one body.

    Args:
        content_encoding: The values of its Content-Encoding headers.

    Attributes:
        size: Bytes of the body so far, or of one of its encoded forms if that has more; to compare with a limit.

    Raises:
        UnsupportedEncoding: A coding is none of CODINGS, or there are too many.
    """

    def __init__(self, content_encoding: Iterable[str] = ()) -> None:
        self.size = 0
        self._received = 0
        self._decoders = [_Decoder(coding) for coding in reversed(_codings_of(content_encoding))]

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Yield the decoded form of the next bytes of the body, in steps of about a millisecond at most.

        Raises:
            InvalidRequest: The bytes are not in the coding.
        """
        self._received += len(data)
        for piece in self._decoded(self._decoders, data):
            self.size = max(self._received, *(decoder.size for decoder in self._decoders), 0)
            yield piece

    def finish(self) -> None:
        """Check that the encoded data ends where the body ends.

        Raises:
            InvalidRequest: It is cut off.
        """
        for decoder in self._decoders:
            decoder.finish()

    def _decoded(self, decoders: list[_Decoder], data: bytes) -> Iterator[bytes]:
        if not decoders:
            yield data
            return
        for piece in decoders[0].pieces(data):
            yield from self._decoded(decoders[1:], piece) if piece else [piece]


class _Stream(Protocol):
    """Decodes a gzip member, a deflate stream or a zstd frame, as the decompressors of the standard library do."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Decoder:
    """Undo one coding."""

    def __init__(self, coding: str) -> None:
        self.size = 0
        self._coding = coding
        self._members = 1
        self._stream = _stream(coding)

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Yield the decoded bytes of each step, which may be none."""
        for start in range(0, len(data), _INPUT_BYTES):
            rest = data[start : start + _INPUT_BYTES]
            while rest or not (self._stream.eof or self._stream.needs_input):
                if self._stream.eof:
                    self._begin_member()
                try:
                    piece = self._stream.decompress(rest, _OUTPUT_BYTES)
                except (zlib.error, zstd.ZstdError) as error:
                    place = "" if self._members == 1 else f"behind the end of part {self._members - 1}: "
                    raise self._corrupt(f"{place}{error}") from None
                rest = self._stream.unused_data if self._stream.eof else b""
                self.size += len(piece)
                yield piece

    def finish(self) -> None:
        if not self._stream.eof:
            raise self._corrupt("it is cut off")

    def _begin_member(self) -> None:
        if self._coding == "deflate":
            raise self._corrupt("something follows its end")
        if self._members == _MAX_MEMBERS:
            raise self._corrupt(f"it has more than {_MAX_MEMBERS} parts, which is the limit")
        self._members += 1
        self._stream = _stream(self._coding)

    def _corrupt(self, reason: str) -> InvalidRequest:
        return InvalidRequest(
            f"the body is not what content-encoding {self._coding} says: {reason}; send it whole, or uncompressed "
            "without the header",
            param="content-encoding",
            code="invalid_encoding",
        )


class _Inflate:
    """Give zlib's decompressor the interface of the others.

    Args:
        wbits: As zlib takes it; None tells zlib's form from bare deflate by its first two bytes, as senders of
            `deflate` mean either.
    """

    def __init__(self, wbits: int | None) -> None:
        self._inflate = None if wbits is None else zlib.decompressobj(wbits)
        self._rest = b""
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._inflate is not None and self._inflate.eof

    @property
    def unused_data(self) -> bytes:
        return b"" if self._inflate is None else self._inflate.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        data = self._rest + data
        if self._inflate is None:
            if len(data) < 2:
                self._rest = data
                return b""
            self._inflate = zlib.decompressobj(zlib.MAX_WBITS if _has_zlib_header(data) else -zlib.MAX_WBITS)
        piece = self._inflate.decompress(data, max_length)
        self._rest = self._inflate.unconsumed_tail
        # After a full piece zlib may have more output.
        self.needs_input = not self._rest and len(piece) < max_length
        return piece


def _has_zlib_header(data: bytes) -> bool:
    """Tell whether a stream has the header of RFC 1950; no encoder begins bare deflate like that."""
    return data[0] & 0x0F == zlib.DEFLATED and int.from_bytes(data[:2], "big") % 31 == 0


def _stream(coding: str) -> _Stream:
    if coding != "zstd":
        return _Inflate(None if coding == "deflate" else 16 + zlib.MAX_WBITS)
    stream: _Stream = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _MAX_ZSTD_WINDOW_LOG})
    return stream


def _codings_of(content_encoding: Iterable[str]) -> list[str]:
    given = ",".join(content_encoding)
    names = [name for name in (part.strip().lower() for part in given.split(",")) if name not in ("", "identity")]
    codings = ["gzip" if name == "x-gzip" else name for name in names]
    if len(codings) > _MAX_CODINGS or not set(codings) <= set(CODINGS):
        raise UnsupportedEncoding(
            f"content-encoding is {given.strip()[:60]!r}; send {', '.join(CODINGS[:-1])} or {CODINGS[-1]}, at most "
            f"{_MAX_CODINGS} of them, or the body as it is without the header",
            param="content-encoding",
        )
    return codings
