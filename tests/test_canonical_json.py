"""Many JSON texts at once are converted in a faster way than a few: to the same text, shape and error."""

from __future__ import annotations

import json
import os

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, example, given, settings

from entityframes.metadata.canonical_json import canonical_json

EXAMPLES = int(os.environ.get("ENTITYFRAMES_JSON_EXAMPLES", "100"))

NUMBERS = st.one_of(
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.decimals(allow_nan=False, allow_infinity=False).map(lambda value: value),
    st.sampled_from(["-0", "-0.0", "0.0", "1.0", "1.50", "1e5", "1E-7", "0.00001", "100.000", "9007199254740993.0"]),
)
#: Numbers as they may be written, not only as Python writes them.
NUMBER_TEXTS = NUMBERS.map(lambda value: value if isinstance(value, str) else str(value).lower()).filter(
    lambda text: "n" not in text.replace("e", "")
)
STRINGS = st.text(max_size=8).map(lambda text: json.dumps(text, ensure_ascii=False)) | st.sampled_from(
    ['"1.0"', '"-0"', '"\\u0000"', '"\\\\u0000"', '"\\ud800"', '"\\u00e9"', '"\x7f\\u001f\\b\\f/\\/"', '"2024-01-05"']
)
SCALARS = (
    NUMBER_TEXTS | STRINGS | st.sampled_from(["null", "true", "false", "NaN", "Infinity", "nul", "01", "1.", ".5"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | st.lists(st.tuples(STRINGS, inner), max_size=3).map(
            lambda items: "{" + ",".join(f"{name} : {value}" for name, value in items) + "}"
        )
    ),
    max_leaves=6,
)
OBJECTS = st.lists(st.tuples(STRINGS, VALUES), max_size=5).map(
    lambda items: "{" + ",".join(f"{name}:{value}" for name, value in items) + "}"
)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(OBJECTS | VALUES)
@example("{" + '"a":{' * 300 + "}" * 301)
@example('{"a":1,"a":2}')
@example('{"b":1.0,"a":[2.0]}')
@example('{"b":1.0,"a":-2.50}')
@example('{"n":18446744073709551616}')
@example('{"n":9223372036854775808,"m":-9223372036854775809}')
@example('{"\\ue000":1.00000000000000000001}')
@example(' \n{"a" : "\t"}')
@example("")
def test_many_like_few(text: str) -> None:
    """The same for one text as for a list of them."""
    few = canonical_json([text])
    many = canonical_json([text] * 20)
    assert many == tuple(part * 20 for part in few)


@pytest.mark.parametrize("other", [None, "{", '{"a":1e400}', '{"a":"\\ud800"}'])
def test_beside_others(other: str | None) -> None:
    """Each text has its own result."""
    texts = ['{"b":1.0,"a":"é"}', other] * 10
    canonical, errors, shapes = canonical_json(texts)
    assert canonical[::2] == ['{"a":"é","b":1}'] * 10
    assert shapes[::2] == [(("b", "a"), (int, str))] * 10
    assert canonical[1::2] == canonical_json([other])[0] * 10
    assert errors[1::2] == canonical_json([other])[1] * 10
