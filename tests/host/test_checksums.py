"""Checksums inside JSON and YAML: a changed value is found, a changed layout is none."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmas_jax.host.checksums import read_sealed, seal, seal_yaml, unseal, unseal_yaml, write_sealed
from rmas_jax.host.errors import InputError

ROW = {"b": [1, 2.5, None], "a": {"2": 1e-7, "10": "ä\u2028"}, "c": True, "n": float("nan")}


def test_a_row_comes_back_and_its_layout_does_not_matter():
    written = json.loads(json.dumps(seal({"steps": {2: 0.5, 10: 0.1}, "pair": (1, 2)}), indent=3))
    turned = dict(reversed(written.items()))
    expected = {"steps": {"2": 0.5, "10": 0.1}, "pair": [1, 2]}
    assert unseal(written, source="", error=InputError) == expected
    assert unseal(turned, source="", error=InputError) == expected
    assert unseal(expected, source="", error=InputError) == expected  # of an earlier version


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_flipped_bit_is_found_or_changes_nothing(data):
    raw = bytearray(json.dumps(seal(ROW)).encode())
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[bit // 8] ^= 1 << bit % 8
    try:
        row = json.loads(raw)
        found = unseal(row, source="here", error=InputError)
    except InputError as error:
        assert str(error).startswith("here: is damaged: its checksum must be ")
    except ValueError:
        pass  # no JSON
    else:  # a blank, or the name of the checksum
        assert json.dumps({key: found[key] for key in ROW}) == json.dumps(ROW)


def test_a_sealed_file_is_read_back_and_damage_names_it_and_the_way_out(tmp_path):
    path = tmp_path / "a.json"
    assert read_sealed(path, error=InputError, way_out="delete it") == {}
    write_sealed(path, {"a": 1})
    assert read_sealed(path, error=InputError, way_out="delete it") == {"a": 1}
    path.write_text(path.read_text().replace('"a": 1', '"a": 2'))
    with pytest.raises(InputError, match=r"a\.json: is damaged: .*; delete it"):
        read_sealed(path, error=InputError, way_out="delete it")


def test_a_yaml_text_is_read_back_and_damage_is_found():
    text = "seed: 0\nname: a\n"
    sealed = seal_yaml(text)
    assert unseal_yaml(sealed, source="", error=InputError) == text
    assert unseal_yaml(text, source="", error=InputError) == text
    for damaged in (sealed.replace("0\nname", "1\nname"), sealed[:-3], sealed + "\0", "", " \n"):
        with pytest.raises(InputError, match=r"config\.yaml: is damaged"):
            unseal_yaml(damaged, source="config.yaml", error=InputError)
