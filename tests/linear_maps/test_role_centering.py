"""A mean per role: maps and fused documents against the formula, files, refusals, and what it is for."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

import semobridge_ext as sb
from tests.support.assertions import assert_close

ROLES = ("query_text", "document_text", "document_image")


def rows(count: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(count, 12, generator=g, dtype=torch.float64) + 0.7 * seed).to(dtype)


def fitted() -> sb.RoleCentering:
    return sb.RoleCentering().fit({role: rows(30, i) for i, role in enumerate(ROLES)})


def centred(x: torch.Tensor, role: str) -> torch.Tensor:
    """By loops over rows."""
    held = rows(30, ROLES.index(role))
    mean = torch.stack([r / r.norm() for r in held]).mean(dim=0)
    return torch.stack([r / r.norm() - mean for r in x.double()])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("role", ROLES)
def test_a_role_loses_its_own_mean(role, dtype):
    x = rows(20, 7, dtype) * 5
    got = fitted().map_for(role)(x)
    assert_close(got, normalize(centred(x, role), dim=1), "op")
    other = fitted().map_for(ROLES[ROLES.index(role) - 1])(x)
    assert float((got - other).abs().max()) > 0.05


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 1.0])
def test_fused_documents_lose_the_same_mix(weight):
    text, image = rows(20, 5) * 3, rows(20, 6) * 0.2
    got = fitted().fuse(text, image, weight)
    mix = weight * centred(text, "document_text") + (1 - weight) * centred(image, "document_image")
    assert_close(got, normalize(mix, dim=1), "op")
    if weight in (0.0, 1.0):
        role, x = (("document_image", image), ("document_text", text))[int(weight)]
        assert_close(got, normalize(centred(x, role), dim=1), "op")


def test_given_means_files_and_other_roles(tmp_path):
    roles = fitted()
    again = sb.RoleCentering(roles.means_)
    roles.save(tmp_path / "r.safetensors")
    loaded = sb.RoleCentering.load(tmp_path / "r.safetensors")
    x = rows(5, 3)
    for other in (again, loaded):
        assert list(other.means_) == list(ROLES) and repr(other) == repr(roles)
        assert torch.equal(other.map_for("query_text")(x), roles.map_for("query_text")(x))
    free = sb.RoleCentering().fit({"caption": rows(4, 1), "sketch": rows(4, 2)})
    assert torch.isfinite(free.fuse(x, x, roles=("caption", "sketch"))).all()


def test_a_mixed_gallery_of_two_modalities():
    """Texts lie around one mean and images around another: unmapped, a text finds texts of any content."""
    g = torch.Generator().manual_seed(1)
    gap = 3 * torch.randn(2, 24, generator=g)
    content = torch.randn(60, 24, generator=g)

    def draw(modality: int, items: torch.Tensor) -> torch.Tensor:
        return content[items] + gap[modality] + 0.5 * torch.randn(len(items), 24, generator=g)

    items = torch.arange(60)
    held, judged = items[:30], items[30:]
    roles = sb.RoleCentering().fit(
        {"query_text": draw(0, held), "document_text": draw(0, held), "document_image": draw(1, held)}
    )
    queries, texts, images = draw(0, judged), draw(0, judged), draw(1, judged)
    gallery = torch.cat([normalize(texts, dim=1), normalize(images, dim=1)])
    before = sb.retrieval_metrics(normalize(queries, dim=1), gallery, judged, judged.repeat(2))
    mapped = torch.cat([roles.map_for("document_text")(texts), roles.map_for("document_image")(images)])
    after = sb.retrieval_metrics(roles.map_for("query_text")(queries), mapped, judged, judged.repeat(2))
    assert after["mAP"] > before["mAP"] + 0.3


BAD = [
    (lambda: sb.RoleCentering().map_for("query_text"), ValueError, "must have means first"),
    (lambda: sb.RoleCentering().save("x"), ValueError, "must have means first"),
    (lambda: fitted().map_for("caption"), ValueError, "role must be one of query_text, .*, got 'caption'"),
    (lambda: fitted().fuse(rows(2, 1), rows(3, 1)), ValueError, r"image must be \[2, 12\]"),
    (lambda: fitted().fuse(rows(2, 1), rows(2, 1)[:, :5]), ValueError, "image must have width 12"),
    (lambda: fitted().fuse(rows(2, 1), rows(2, 1), 1.5), ValueError, r"weight must lie in 0\.\.1"),
    (lambda: sb.RoleCentering({}), ValueError, "means must map names of roles to rows"),
    (
        lambda: sb.RoleCentering({"a": torch.ones(2), "b": torch.ones(3)}),
        ValueError,
        r"must be \[2\]",
    ),
    (lambda: sb.RoleCentering({"a": torch.ones(2).long()}), TypeError, r"means\['a'\] must be float32"),
    (lambda: sb.RoleCentering().fit({"a": torch.ones(2)}), ValueError, r"features\['a'\] must be 2-D"),
    (lambda: sb.RoleCentering().fit(torch.ones(2, 2)), TypeError, "features must map roles to rows"),
    (lambda: sb.RoleCentering({"a": torch.tensor([torch.nan])}), ValueError, r"means\['a'\] must be finite"),
]


@pytest.mark.parametrize("call,kind,told", BAD, ids=[told[:30] for _, _, told in BAD])
def test_refused(call, kind, told):
    with pytest.raises(kind, match=told):
        call()
