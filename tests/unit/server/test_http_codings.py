"""Compressed bodies: every coding undone, within limits of memory and of time at a stretch."""

from __future__ import annotations

import asyncio
import gzip
import random
import sys
import tracemalloc
import zlib
from collections.abc import Callable

import httpx
import pytest
from fastapi import Request

from crossrank.errors import InvalidRequest, UnsupportedEncoding
from crossrank_server.http.body import BodyReader
from crossrank_server.http.codings import BodyDecoder
from tests.http_app import client_of, make_app

if sys.version_info >= (3, 14):
    import compression.zstd as zstd
else:
    import backports.zstd as zstd

MAX_BODY_BYTES = 1_000_000  # of make_app
TEXT = b'{"query": "how many people", "documents": ["a", "b"]}'
LARGE = random.Random(1).randbytes(100_000).hex().encode() * 4


def bare_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


def zstd_of_unknown_size(data: bytes, window_log: int = 0) -> bytes:
    options = {zstd.CompressionParameter.window_log: window_log} if window_log else None
    compressor = zstd.ZstdCompressor(options=options)
    return compressor.compress(data) + compressor.flush()


ENCODED: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "identity": ("identity", bytes),
    "gzip": ("gzip", gzip.compress),
    "x-gzip, upper case": (" X-GZIP ", gzip.compress),
    "gzip in two members": ("gzip", lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:])),
    "deflate": ("deflate", zlib.compress),
    "deflate, bare": ("deflate", bare_deflate),
    "deflate, stored": ("deflate", lambda data: zlib.compress(data, 0)),
    "zstd": ("zstd", zstd.compress),
    "zstd of unknown size": ("zstd", zstd_of_unknown_size),
    "zstd with the largest window": ("zstd", lambda data: zstd_of_unknown_size(data, 23)),
    "zstd in two frames": ("zstd", lambda data: zstd.compress(data[:9]) + zstd.compress(data[9:])),
    "zstd with a skippable frame": ("zstd", lambda data: b"\x50\x2a\x4d\x18\x02\0\0\0xx" + zstd.compress(data)),
    "two": ("gzip, identity, zstd", lambda data: zstd.compress(gzip.compress(data))),
    "three": ("deflate,,gzip ,Zstd", lambda data: zstd.compress(gzip.compress(bare_deflate(data)))),
}
every_encoding = pytest.mark.parametrize(("coding", "encode"), ENCODED.values(), ids=ENCODED.keys())


def decoded(coding: str, data: bytes, chunk_bytes: int = 65536) -> bytes:
    decoder = BodyDecoder([coding])
    chunks = [data[i : i + chunk_bytes] for i in range(0, len(data), chunk_bytes)]
    pieces = b"".join(piece for chunk in chunks for piece in decoder.pieces(chunk))
    decoder.finish()
    return pieces


@every_encoding
@pytest.mark.parametrize("chunk_bytes", [1, 7, 65536])
def test_a_coding_is_undone_however_it_is_cut(coding, encode, chunk_bytes):
    assert decoded(coding, encode(TEXT), chunk_bytes) == TEXT


@every_encoding
def test_a_large_body_is_undone(coding, encode):
    assert decoded(coding, encode(LARGE)) == LARGE


@pytest.mark.parametrize("encode", [zlib.compress, bare_deflate, lambda data: zlib.compress(data, 0)])
def test_deflate_is_told_apart_whatever_it_begins_with(encode):
    for first in range(256):
        data = bytes([first]) * 3 + TEXT
        assert decoded("deflate", encode(data)) == data


@pytest.mark.parametrize(
    "name", [name for name in ENCODED if not {"identity", "members", "frames", "skippable"} & set(name.split())]
)
def test_a_body_that_is_cut_off_or_followed_by_something_is_refused(name):
    coding, encode = ENCODED[name]
    whole = encode(TEXT)
    cut_off = [whole[:end] for end in range(len(whole))]
    followed = [whole + extra for extra in (b"x", b"\0", b"rubbish of some length", whole[:5])]
    for body in cut_off + followed:
        with pytest.raises(InvalidRequest, match=r"the body is not what content-encoding \w+ says: .*; send it whole"):
            decoded(coding, body)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["br"], "'br'"),
        (["gzip, br"], "'gzip, br'"),
        (["gzip", "compress"], "'gzip,compress'"),
        (["*"], r"'\*'"),
        (["gzip;q=1"], "'gzip;q=1'"),
        (["gzip, gzip, gzip, gzip"], "at most 3"),
        (["x" * 100_000], "'x{60}'"),
    ],
)
def test_what_is_not_known_is_refused_by_name(given, shown):
    with pytest.raises(UnsupportedEncoding, match=f"content-encoding is .*{shown}|{shown}"):
        BodyDecoder(given)


@pytest.mark.parametrize(
    ("coding", "encode"),
    [
        ("gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("zstd", zstd.compress),
        ("gzip, gzip", lambda data: gzip.compress(gzip.compress(data))),
    ],
)
def test_a_bomb_gives_its_size_away_in_small_steps(coding, encode):
    bomb = encode(bytes(20_000_000))
    decoder = BodyDecoder([coding])
    tracemalloc.start()
    try:
        sizes = [
            len(piece) for start in range(0, len(bomb), 65536) for piece in decoder.pieces(bomb[start : start + 65536])
        ]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(sizes) == decoder.size == 20_000_000
    assert max(sizes) <= 262_144
    assert peak < 2_000_000


def test_a_form_in_between_counts_too():
    # Empty blocks: megabytes of them stand for nothing.
    blocks = b"\x00\x00\x00\xff\xff" * 500_000 + bare_deflate(b"")
    decoder = BodyDecoder(["deflate, gzip"])
    assert b"".join(decoder.pieces(gzip.compress(blocks))) == b""
    assert decoder.size == len(blocks)


def test_a_frame_that_wants_a_larger_window_is_refused():
    with pytest.raises(InvalidRequest, match="too much memory"):
        decoded("zstd", zstd_of_unknown_size(TEXT, 24))


@pytest.mark.parametrize(("coding", "compress"), [("gzip", gzip.compress), ("zstd", zstd.compress)])
def test_parts_without_end_are_refused(coding, compress):
    empty = compress(b"")
    assert decoded(coding, empty * 1000) == b""
    with pytest.raises(InvalidRequest, match="more than 1000 parts"):
        decoded(coding, empty * 1001)


async def test_others_have_their_turn_while_a_large_body_is_decompressed():
    bomb = gzip.compress(bytes(50_000_000))
    scope = {"type": "http", "headers": [(b"content-encoding", b"gzip")], "state": {}}
    turns = 0

    async def receive():
        return {"type": "http.request", "body": bomb, "more_body": False}

    async def take_turns():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.ensure_future(take_turns())
    try:
        reader = BodyReader(50_000_000)
        body = await reader.read(Request(scope, receive), reader.held.open("test"))
        assert len(body) == 50_000_000
    finally:
        other.cancel()
    assert turns > 3


@pytest.fixture(scope="module")
def app(builtin):
    return make_app(builtin)


async def post(app, body: bytes, coding: str) -> httpx.Response:
    async with client_of(app) as client:
        return await client.post("/v1/rerank", content=body, headers={"content-encoding": coding})


@every_encoding
async def test_a_compressed_request_is_scored_like_the_plain_one(app, coding, encode):
    answer = await post(app, encode(TEXT), coding)
    assert answer.status_code == 200
    assert answer.json()["results"] == (await post(app, TEXT, "")).json()["results"]


async def test_an_unknown_coding_is_a_415_that_names_the_known_ones(app):
    answer = await post(app, TEXT, "br")
    assert answer.status_code == 415
    assert answer.headers["accept-encoding"] == "gzip, deflate, zstd"
    assert answer.json()["error"]["code"] == "unsupported_encoding"
    assert answer.json()["error"]["param"] == "content-encoding"


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
@pytest.mark.parametrize("body", [b"", TEXT, gzip.compress(TEXT)[:-3]], ids=["empty", "plain", "cut off"])
async def test_a_body_that_is_something_else_is_a_400_that_says_so(app, coding, body):
    answer = await post(app, body, coding)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_encoding"
    assert f"content-encoding {coding} says" in answer.json()["message"]


@pytest.mark.parametrize(("coding", "encode"), [ENCODED["gzip"], ENCODED["deflate"], ENCODED["zstd"], ENCODED["two"]])
async def test_a_bomb_is_a_413_and_nothing_of_it_is_held(app, coding, encode):
    largest = TEXT + b" " * (MAX_BODY_BYTES - len(TEXT))
    assert (await post(app, encode(largest), coding)).status_code == 200
    for body in (largest + b" ", bytes(20_000_000)):
        answer = await post(app, encode(body), coding)
        assert answer.status_code == 413
        assert f"the limit is {MAX_BODY_BYTES}" in answer.json()["message"]
    async with client_of(app) as client:
        metrics = (await client.get("/metrics")).text
    assert "\ncrossrank_request_bodies_held_bytes 0.0\n" in metrics
