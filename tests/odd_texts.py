"""Texts of the kind that tokenizers, truncation and transports have been seen to get wrong."""

from __future__ import annotations

import random

LANGUAGES = [
    "How many people live in Berlin? 3,520,031 registered inhabitants, in 891.82 km².",
    "Сколько людей живёт в Берлине? Население города растёт.",
    "柏林有多少人口？这座城市有三百五十万居民。",
    "كم عدد سكان برلين؟ المدينة كبيرة جدًّا.",
    "बर्लिन में कितने लोग रहते हैं? शहर की जनसंख्या बढ़ रही है।",
    "베를린에는 몇 명이 살고 있습니까? ベルリンの人口は何人ですか。 กรุงเบอร์ลินมีประชากรกี่คน",
    "Ünïcödé ﬁnds İstanbul, straße, Æsir, ǅungla and Ångström Å",
]
ODD = [
    "emoji 😀 👩‍👩‍👧‍👦 family, 🏳️‍🌈 flag, 👍🏽 tone, 🇩🇪",
    "a NUL \x00 in the \x00\x00 middle",
    "controls \x01\x08\x1f\x7f and \u200b zero \ufeff width \u202e turned \u2028 lines \r\n\t tabs \x85",
    "<html><body class='a'>Berlin &amp; <b>Paris</b></body></html> <!-- [x](y) **bold** -->",
    "\u0301 lone \u0323\u0301 marks e\u0301 e\u0323\u0301 e\u0301\u0323 \u094d \u0e47",
    "Donaudampfschifffahrtsgesellschaft" * 8,
    "x" * 300,
    "a  b   c    d     e      f\n\n\n  g\u00a0\u3000h",
    "don't we'll I'd 12345678901234567890 3.14159 1e-10 $€£¥ ...!!!??? --- ___ ~~~ ```",
    "private \ue000 unassigned \u0378 replacement \ufffd noncharacter \uffff beyond \U000e0001",
    "##ing ##s Ġword ▁word Ċ",
    ".",
    "",
    "   ",
    "\n\t ",
]
SPECIAL_TOKENS = [
    "[CLS] in [SEP] the [MASK] text [PAD] [UNK][SEP]",
    "<s> in </s> the <mask> text <pad> <unk></s></s>",
    "almost [sep] < s > [ SEP ] <MASK> [CLS",
]
BLANK = ["", "   ", "\n\t \u3000"]


def words(count: int, seed: int) -> str:
    """Return generated words, on which the small tokenizers are trained too."""
    rng = random.Random(seed)
    return " ".join(
        "".join(rng.choice("bdfgklmnprst") + rng.choice("aeiou") for _ in range(rng.randint(1, 4)))
        for _ in range(count)
    )


DOCUMENTS = [*LANGUAGES, *ODD, *SPECIAL_TOKENS]
LONG_DOCUMENT = words(400, 1) + " 柏林 " + words(50, 2)
QUERIES = [LANGUAGES[0], ODD[0], SPECIAL_TOKENS[0]]
"""Asked of all documents."""
FEW_QUERIES = [*LANGUAGES[1:], ODD[1], ODD[2], ODD[4], ODD[6], *SPECIAL_TOKENS[1:]]
"""Asked of a few documents."""
LONG_QUERY = words(300, 3)


def groups() -> list[tuple[str, list[str]]]:
    """Return (query, documents): each odd text on both sides, and over the window on either side and on both."""
    few = [LANGUAGES[0], LONG_DOCUMENT, SPECIAL_TOKENS[1], ""]
    return [
        *((query, [*DOCUMENTS, LONG_DOCUMENT]) for query in QUERIES),
        *((query, few) for query in [*FEW_QUERIES, LONG_QUERY]),
    ]
