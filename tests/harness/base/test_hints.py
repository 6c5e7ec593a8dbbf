"""What zoo's errors lack comes with the command that makes it, and the program takes that command."""

import shlex

import pytest

from harness.base.hints import describe_error
from harness.cli.entry import parse
from zoo.core.errors import add_remedy

PREDICTOR = {"model": "clip_vit_b16", "tag": "openai", "block": 3, "options": {"arch": "mlp", "width": 9}}


@pytest.mark.parametrize(("kind", "facts", "path", "values"), [
    ("predictor", PREDICTOR, "fit predictor", {"block": 3, "arch": "mlp", "width": 9}),
    ("prompts", {"dataset": "toy", "recipe": {"count": 2}}, "fit prompts", {"tokens": "vt", "count": 2}),
    ("recovery", {"datasets": [{"name": "a"}, {"name": "b"}]}, "fit recovery", {"datasets": ["a", "b"]}),
    ("keep rate", {"model": "clip_vit_b16.", "method": "tome", "keep": 0.55}, "compare", {"keeps": [0.55]}),
    ("model", {}, "list", {}),
])  # fmt: skip
def test_the_command_of_a_hint_is_one(kind: str, facts: dict, path: str, values: dict):
    inner = add_remedy(ValueError("inner"), kind, **facts)
    try:
        raise ValueError("outer") from inner
    except ValueError as error:
        message = describe_error(error)
    assert message.startswith("outer; ")
    line = message.partition("patchrank ")[2].replace("MODEL", "clip_vit_b16")
    args = vars(parse(shlex.split(line)))
    assert args["command"] == path
    assert {name: args[name] for name in values} == values
