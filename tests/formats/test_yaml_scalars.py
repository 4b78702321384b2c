"""Plain words in YAML mean what Kubernetes makes of them, whatever PyYAML would."""

from __future__ import annotations

import pytest
import yaml

from istio_init.formats import yaml_json
from istio_init.formats.yaml_json import load

# What sigs.k8s.io/yaml 1.6.0 (YAMLToJSON), which kubectl and the API server use, makes of `a: WORD`.
WORDS: dict[str, object] = {
    "2026-08-22": "2026-08-22",
    "2026-08-22T10:00:00Z": "2026-08-22T10:00:00Z",
    "2026-08-22 10:00:00": "2026-08-22 10:00:00",
    "2026-13-45": "2026-13-45",
    "!!timestamp 2026-01-01": "2026-01-01",
    "12:30:45": "12:30:45",
    "1:30": "1:30",
    "190:20:30.15": "190:20:30.15",
    **dict.fromkeys(("y", "Y", "yes", "Yes", "YES", "on", "On", "true", "True", "TRUE", '!!bool "yes"'), True),
    **dict.fromkeys(("n", "N", "no", "No", "off", "OFF", "false"), False),
    **{word: word for word in ("yES", "tRUE", "nULL", "=", "_1", "1e", "e1", "0.1.2", "1,000", "0o8", "0b2", "0xZ")},
    **dict.fromkeys(("", "~", "null", "Null", "NULL", '!!null ""'), None),
    "1e3": 1000,
    "1E3": 1000,
    "1e+3": 1000,
    "1.5e3": 1500,
    "1.": 1,
    "1.0": 1,
    "+1": 1,
    "-1": -1,
    "0": 0,
    "00": 0,
    "010": 8,
    "0o10": 8,
    "-010": -8,
    "0777": 511,
    "08": 8,
    "09": 9,
    "0x1F": 31,
    "0X1F": 31,
    "0b11": 3,
    "0B11": 3,
    "1_000": 1000,
    "0x_1": 1,
    "1_0.5": 10.5,
    "1__0": 10,
    ".5": 0.5,
    "-.5": -0.5,
    "+1.5": 1.5,
    "1.10": 1.1,
    "18446744073709551615": 18446744073709551615,
    "1e1000": "1e1000",
    ".": ".",
    "..": "..",
    "+": "+",
    '"2026-08-22"': "2026-08-22",
    "!!str 5": "5",
    '!!int "5"': 5,
    "!!float 5": 5,
}


@pytest.mark.parametrize("base", ["CSafeLoader", "SafeLoader"])
@pytest.mark.parametrize("word", WORDS)
def test_words(word: str, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if base == "SafeLoader":
        monkeypatch.delattr(yaml, "CSafeLoader")
    (document,) = load(f"a: {word}\n")
    assert document == {"a": WORDS[word]}
    assert type(document["a"]) is type(WORDS[word])


@pytest.mark.parametrize("word", ["!!int x", "!!bool maybe", "!!float x"])
def test_a_word_that_its_tag_does_not_fit(word: str) -> None:
    with pytest.raises(ValueError, match=r"^not YAML: line 1: '\w+' is no (integer|boolean|number)$"):
        load(f"a: {word}")


@pytest.mark.parametrize("word", [word for word in WORDS if not word.startswith(("!", '"'))])
def test_text_that_looks_like_something_else_is_written_in_quotes(word: str) -> None:
    written = yaml_json.dump({"a": word}, "yaml")
    assert load(written) == [{"a": word}]
    assert yaml.safe_load(written) == {"a": word}
