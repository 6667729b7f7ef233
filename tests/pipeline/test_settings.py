"""Controls take what their JSON schema takes, and options take the same as text."""

from __future__ import annotations

import argparse
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from options import UsageError, add_control_options, controls_from
from pipeline.settings import Controls, ModelSpec

SCHEMA = Controls.model_json_schema()
FIELDS = SCHEMA["properties"]
EDGES = sorted(
    {side for field in FIELDS.values() for key in ("minimum", "maximum") if (side := field.get(key)) is not None}
)
numbers = (
    st.sampled_from([number for edge in EDGES for number in (edge, float(edge), edge - 1, edge + 0.5, str(edge))])
    | st.integers()
    | st.floats()
)
leaves = st.none() | st.booleans() | numbers | st.text(max_size=20) | st.integers(1998, 2002).map("x".__mul__)
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner), max_leaves=4)


def is_valid(value, schema) -> bool:
    """JSON Schema (2020-12, validation), as far as Controls use it; and numbers are finite, as JSON's are."""
    assert schema.keys() <= {
        *("type", "minimum", "maximum", "maxLength", "additionalProperties"),
        *("title", "description", "default", "step", "unit", "x-needs", "x-widget"),
    }
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
    match schema["type"]:
        case "boolean":
            return isinstance(value, bool)
        case "string":
            return isinstance(value, str) and len(value) <= schema["maxLength"]
        case "object":
            own = schema["additionalProperties"]
            return isinstance(value, dict) and all(is_valid(member, own) for member in value.values())
        case "number" | "integer" as kind:
            is_whole = kind == "number" or (is_number and value == int(value))
            return is_number and is_whole and schema["minimum"] <= value <= schema["maximum"]
        case other:
            raise AssertionError(f"Controls have a field of type {other}: this test is to know it.")


@given(st.sampled_from(sorted(FIELDS)), values)
@example("strength", True)
@example("strength", "0.5")
@example("strength", 1)
@example("steps", 3.0)
@example("steps", 2.5)
@example("seed", 10**400)
@example("guidance", 10**400)
@example("guidance", float("nan"))
@example("bypass", "yes")
@example("bypass", 1)
@example("lora_weights", {"ink": True})
@example("lora_weights", {"ink": 1})
def test_a_value_is_taken_if_and_only_if_the_schema_takes_it(name, value):
    value = json.loads(json.dumps(value))
    if is_valid(value, FIELDS[name]):
        assert getattr(Controls().merged({name: value}), name) == value
        return
    with pytest.raises(ValidationError) as refusal:
        Controls().merged({name: value})
    assert refusal.value.errors()[0]["loc"][0] == name


def given_by(*arguments: str) -> Controls:
    parser = argparse.ArgumentParser()
    add_control_options(parser)
    return controls_from(
        parser.parse_args(arguments), ModelSpec("base", loras=({"path": "ink.safetensors"},)), Controls()
    )


def test_on_the_command_line_all_is_text():
    flags = "--strength 1 --steps 3 --seed 7 --skip-similar 2.5 --bypass --prompt 5 --lora-weights ink=0.5"
    expected = Controls(
        strength=1.0, steps=3, seed=7, skip_similar=2.5, bypass=True, prompt="5", lora_weights={"ink": 0.5}
    )
    assert given_by(*flags.split()) == expected


@pytest.mark.parametrize(
    "flag", ["--strength=nan", "--strength=inf", "--steps=2.5", "--seed=x", "--lora-weights=ink=inf"]
)
def test_text_that_is_no_such_number_is_wrong_usage(flag):
    with pytest.raises(UsageError, match="^" + flag.partition("=")[0] + ": "):
        given_by(flag)
