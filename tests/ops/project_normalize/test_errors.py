"""ops/project_normalize: what is refused, in which words."""

from __future__ import annotations

import re

import pytest
import torch

import semobridge_ext as sb
from semobridge_ext.ops import project_normalize

X, M = torch.ones(2, 3), torch.ones(3, 4)

# `<function>: <argument> must <contract>, got <value>; <remedy>`
FORM = r"^{function}: {argument} .*must .+, got .+; \S.+$"

BAD = {
    "x a list": (TypeError, "x", lambda: project_normalize([[1.0]], M)),
    "x an array": (TypeError, "x", lambda: project_normalize(X.numpy(), M)),
    "x None": (TypeError, "x", lambda: project_normalize(None, M)),
    "x integer": (TypeError, "x", lambda: project_normalize(X.int(), M)),
    "x bool": (TypeError, "x", lambda: project_normalize(X.bool(), M)),
    "x complex": (TypeError, "x", lambda: project_normalize(X.to(torch.complex64), M)),
    "x float8": (TypeError, "x", lambda: project_normalize(X.to(torch.float8_e4m3fn), M)),
    "x sparse": (TypeError, "x", lambda: project_normalize(X.to_sparse(), M)),
    "x scalar": (ValueError, "x", lambda: project_normalize(torch.tensor(1.0), M)),
    "x too wide": (ValueError, "x", lambda: project_normalize(torch.ones(2, 4), M)),
    "x too narrow": (ValueError, "x", lambda: project_normalize(torch.ones(2, 1), M)),
    "x empty width": (ValueError, "x", lambda: project_normalize(torch.ones(2, 0), M)),
    "matrix a list": (TypeError, "matrix", lambda: project_normalize(X, [[1.0]])),
    "matrix integer": (TypeError, "matrix", lambda: project_normalize(X, M.long())),
    "matrix sparse": (TypeError, "matrix", lambda: project_normalize(X, M.to_sparse())),
    "matrix 1-D": (ValueError, "matrix", lambda: project_normalize(X, torch.ones(3))),
    "matrix 3-D": (ValueError, "matrix", lambda: project_normalize(X, torch.ones(1, 3, 4))),
    "matrix no columns": (ValueError, "matrix", lambda: project_normalize(X, torch.ones(3, 0))),
    "matrix no rows": (ValueError, "matrix", lambda: project_normalize(torch.ones(2, 0), torch.ones(0, 4))),
    "matrix elsewhere": (ValueError, "matrix", lambda: project_normalize(X, M.to("meta"))),
    "bias a number": (TypeError, "bias", lambda: project_normalize(X, M, bias=1.0)),
    "bias integer": (TypeError, "bias", lambda: project_normalize(X, M, bias=torch.ones(4).int())),
    "bias scalar": (ValueError, "bias", lambda: project_normalize(X, M, bias=torch.tensor(1.0))),
    "bias of width K": (ValueError, "bias", lambda: project_normalize(X, M, bias=torch.ones(3))),
    "bias of width 1": (ValueError, "bias", lambda: project_normalize(X, M, bias=torch.ones(1))),
    "bias other rows": (ValueError, "bias", lambda: project_normalize(X, M, bias=torch.ones(3, 4))),
    "bias of more rows than one": (
        ValueError,
        "bias",
        lambda: project_normalize(X[:1], M, bias=torch.ones(3, 4)),
    ),
    "bias extra dim": (ValueError, "bias", lambda: project_normalize(X, M, bias=torch.ones(1, 2, 4))),
    "bias elsewhere": (ValueError, "bias", lambda: project_normalize(X, M, bias=torch.ones(4).to("meta"))),
    "scale text": (TypeError, "scale", lambda: project_normalize(X, M, scale="2")),
    "scale None": (TypeError, "scale", lambda: project_normalize(X, M, scale=None)),
    "scale a tensor": (TypeError, "scale", lambda: project_normalize(X, M, scale=torch.tensor(2.0))),
}


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str, backend: str):
    kind, argument, call = BAD[case]
    with sb.backend(backend), pytest.raises(kind) as caught:
        call()
    form = FORM.format(function="project_normalize", argument=argument)
    assert re.match(form, str(caught.value), re.DOTALL), str(caught.value)
    assert type(caught.value) is kind


def test_message_names_the_value():
    with pytest.raises(ValueError, match=r"got a float32 tensor of shape \[2, 5\] on cpu"):
        project_normalize(torch.ones(2, 5), M)
    with pytest.raises(TypeError, match=r"got a int64 tensor of shape \[2, 3\]"):
        project_normalize(X.long(), M)


def test_options_are_keyword_only():
    with pytest.raises(TypeError, match="positional"):
        project_normalize(X, M, torch.ones(4))
