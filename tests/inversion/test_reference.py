"""The oracle's own reading of a template, which shares no code with the product's."""

from __future__ import annotations

import pytest

from semobridge_ext.clip.template import default_tokenizer, template_ids
from semobridge_ext.inversion.reference import placeholder

TEMPLATES = ("a photo of {}", "a photo of {} in the wild.", "{} is big", "{}")


@pytest.mark.parametrize("context", [16, 77])
@pytest.mark.parametrize("num_tokens", [1, 2, 4])
@pytest.mark.parametrize("template", TEMPLATES)
def test_oracle_and_product_read_a_template_alike(template: str, num_tokens: int, context: int) -> None:
    tokenizer = default_tokenizer("oti", 49408)
    ids, positions = template_ids("oti", tokenizer, template, num_tokens, context)
    found, places = placeholder(tokenizer, template, num_tokens, context)
    assert found.tolist() == ids.tolist() and places == positions
    assert len(places) == num_tokens and len(found) == context


@pytest.mark.parametrize(
    "template", ["no place", "{} and {}", "one two three four five six seven {} eight nine"]
)
def test_a_template_that_loses_its_placeholder_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r"^reference\.oti: template must keep 1 placeholder"):
        placeholder(default_tokenizer("oti", 49408), template, 1, 10)
