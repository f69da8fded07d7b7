"""Every loader of safetensors, with a small valid file and a use of what it holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext.cli.commands.invert import _read_features
from semobridge_ext.clip.checkpoints import read_projections
from tests.fuzz.runner import Target, loaded
from tests.support import discovery, incremental, prompt_learning, towers
from tests.support.problems import make

P = make(5, 2, 12, width=7, text_width=6)
NAMES = ["a", "b", "c", "d", "e"]
LABELS = [NAMES[i] for i in P.labels.tolist()]


def rows(width: int, count: int = 3) -> Tensor:
    return torch.linspace(-1, 1.5, count * width).reshape(count, width)


def saved(made: Callable[[], Any]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / "file.safetensors"
        made().save(path)
        return path

    return write


# -- maps --------------------------------------------------------------------------------------------


def use_bridge(path: Path) -> Sequence[Tensor]:
    b = loaded(sb.Bridge.load(path))
    x = rows(b.text_projection.shape[1])
    b.save(path)
    return [b(x), b(x, normalize=False), b(x, project=False), b.inverse]


def use_map(path: Path) -> Sequence[Tensor]:
    found = loaded(sb.LinearMap.load(path))
    found.save(path)
    return [found(rows(found.in_features))]


def linear_map() -> Any:
    return sb.LinearMap.compose(
        sb.LinearMap(rows(5, 4), rows(5, 1)[0]), sb.LinearMap(rows(6, 5), normalize=True)
    )


def role_centering() -> Any:
    return sb.RoleCentering().fit({"query_text": rows(4), "document_image": rows(4).flip(0)})


def use_role_centering(path: Path) -> Sequence[Tensor]:
    found = loaded(sb.RoleCentering.load(path))
    found.save(path)
    assert repr(found)
    return [found.map_for(role)(rows(len(mean))) for role, mean in found.means_.items()]


def use_onnx(path: Path) -> Sequence[Tensor]:
    found = loaded(sb.LinearMap.from_onnx(path))
    return [found(rows(found.in_features))]


def make_onnx(folder: Path) -> Path:
    linear_map().to_onnx(folder / "file.onnx")
    return folder / "file.onnx"


def isoclip() -> Any:
    g = torch.Generator().manual_seed(1)
    image, text = torch.randn(8, 4, generator=g), torch.randn(6, 4, generator=g)
    return sb.IsoCLIP(image, text, k_top=1, k_bottom=1)


def affine_isoclip() -> Any:
    g = torch.Generator().manual_seed(2)
    biases = {f"{side}_bias": torch.randn(4, generator=g) for side in ("image", "text")}
    given = isoclip()
    return sb.IsoCLIP(given.image_projection, given.text_projection, k_top=1, k_bottom=1, **biases)


def use_isoclip(path: Path) -> Sequence[Tensor]:
    iso = loaded(sb.IsoCLIP.load(path))
    v, t = iso.image_projection.shape[0], iso.text_projection.shape[0]
    iso.save(path)
    return [
        iso.image(rows(v)),
        iso.text(rows(t)),
        iso.image(rows(v), compress=True),
        iso.transform(rows(v if iso.side == "image" else t)),
    ]


# -- classifiers -------------------------------------------------------------------------------------

MADE: dict[str, Callable[[], Any]] = {
    "SeMoBridgeClassifier": lambda: sb.SeMoBridgeClassifier(P.bridge(), P.text, class_names=NAMES),
    "SeMoBridgeT": lambda: sb.SeMoBridgeT(P.bridge(), P.text, P.hidden, class_names=NAMES, steps=2),
    "TipAdapter": lambda: sb.TipAdapter(P.text, class_names=NAMES),
    "TipAdapterF": lambda: sb.TipAdapterF(P.text, class_names=NAMES, epochs=1),
    "APE": lambda: sb.APE(P.text, class_names=NAMES, channels=4),
    "GDA": lambda: sb.GDA(P.text, class_names=NAMES),
    "ProKeR": lambda: sb.ProKeR(P.text, class_names=NAMES),
    "LPPlusPlus": lambda: sb.LPPlusPlus(P.text, class_names=NAMES, steps=2),
    "ProLIP": lambda: sb.ProLIP(torch.eye(P.text.shape[1]), P.text, class_names=NAMES, steps=2),
    "APET": lambda: sb.APET(P.text, class_names=NAMES, channels=4, epochs=1),
    "ZeroShot": lambda: sb.ZeroShot(P.text, class_names=NAMES),
    "NearestClassMean": sb.NearestClassMean,
    "LDA": sb.LDA,
}


def fitted(kind: str) -> Callable[[], Any]:
    def made() -> Any:
        clf = MADE[kind]()
        return clf.fit() if kind == "ZeroShot" else clf.fit(P.shots, LABELS)

    return made


def use_estimator(kind: str) -> Callable[[Path], Sequence[Tensor]]:
    def use(path: Path) -> Sequence[Tensor]:
        clf = loaded(getattr(sb, kind).load(path))
        x, y = rows(clf.n_features_in_, 6), [clf.classes_[i % len(clf.classes_)] for i in range(6)]
        results = [clf.decision_function(x), clf.predict_proba(x), torch.as_tensor(clf.score(x, y))]
        assert len(clf.predict(x)) == 6 and repr(clf)
        clf.save(path)
        if kind.startswith("SeMoBridge"):
            clf.tune(x, y, n_trials=3, sampler="random")
            results.append(clf.add_shots(x, y).decision_function(x))
        elif kind in ("TipAdapter", "TipAdapterF", "APE", "APET", "GDA", "ProKeR"):
            results.append(clf.tune(x, y).decision_function(x))
        return results

    return use


def support() -> Any:
    g = torch.Generator().manual_seed(2)
    keys = torch.nn.functional.normalize(torch.randn(9, 4, generator=g), dim=1)
    return sb.SupportSet(keys, torch.arange(9) % 3, 3, weights=torch.rand(9, generator=g))


def gallery() -> Any:
    return sb.Gallery(torch.randn(40, 4, generator=torch.Generator().manual_seed(5)))


def use_gallery(path: Path) -> Sequence[Tensor]:
    found = loaded(sb.Gallery.load(path))
    k = min(3, len(found))
    before = found.topk(rows(found.width), k).scores
    return [before, found.add(rows(found.width)).topk(rows(found.width), k).scores]


def use_support(path: Path) -> Sequence[Tensor]:
    found = loaded(sb.SupportSet.load(path))
    x = torch.nn.functional.normalize(rows(found.width), dim=1)
    before = found.logits(x, beta=1.5)
    if found.num_classes:
        keys = torch.ones(2, found.width, dtype=found.keys.dtype)
        weights = None if found.weights is None else torch.ones(2)
        found.append(keys, torch.tensor([0, found.num_classes - 1]), weights)
    after = found.logits(x)
    found.save(path)
    return [before, after]


# -- category discovery ------------------------------------------------------------------------------

GCD = {"width": 6, "hidden": 4, "projection": 3, "epochs": 2, "checkpoint_every": 1}


def spectral_filter() -> Any:
    return sb.SpectralFilter(temperature=0.5).fit(P.queries, P.text)


def use_filter(path: Path) -> Sequence[Tensor]:
    found = loaded(sb.SpectralFilter.load(path))
    found.save(path)
    assert found.scores_[found.kept_].shape == found.kept_.shape and repr(found)
    return [found.scores_, found.spectrum_, found.fit(P.queries, P.text).scores_]


def discovered(checkpoint: Path | None = None) -> Any:
    data = discovery.images(40, dtype=torch.float32)
    return discovery.fit(data, checkpoint=checkpoint, **GCD)


def use_gcd(path: Path) -> Sequence[Tensor]:
    found = loaded(sb.SpectralGCD.load(path))
    x = rows(found.n_features_in_, 6)
    assert len(found.predict(x)) == 6 and repr(found) and len(found.classes_) >= len(found.old_classes_)
    found.save(path)
    return [found.logits(x), found.predict_proba(x)]


def trained_block() -> Any:
    """Of a tower small enough that its file is."""
    model = towers.VISION_MODELS["open_clip"]()
    inputs = sb.discovery.cache_block_inputs(model, torch.zeros(12, 3, 32, 32), dtype=torch.float32)
    noise = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0))
    gcd = sb.SpectralGCD(model=model, num_classes=3, **{**GCD, "batch_size": 6})
    return gcd.fit(inputs + noise, ["a", None, "b", None] * 3)


def use_block(path: Path) -> Sequence[Tensor]:
    found = loaded(sb.SpectralGCD.load(path))
    facts, width = found._facts, len(found._folded["block_norm1_weight"])
    x = rows(width, 2 * facts.tokens).reshape(2, facts.tokens, width)
    found.save(path)
    return [found.features(x), found.logits(x)]


def make_block_inputs(folder: Path) -> Path:
    path = folder / "file.safetensors"
    model = towers.VISION_MODELS["open_clip"]()
    sb.discovery.cache_block_inputs(model, torch.zeros(2, 3, 3, 32, 32), out=path)
    return path


def use_block_inputs(path: Path) -> Sequence[Tensor]:
    found = loaded(sb.discovery.load_block_inputs(path))
    assert found.dim() == 4
    return [found.nan_to_num()]


def discover(path: Path) -> Sequence[Tensor]:
    found = discovered(path)
    return [found.losses_, found.logits(rows(10))]


def half_way(checkpoint: Any, run: Callable[[], Any], path: Path) -> Path:
    """What the first write of a run left at a path."""
    kept, write = [], checkpoint.write

    def keeps(self: Any, *state: Any) -> None:
        write(self, *state)
        kept.append(path.read_bytes())

    checkpoint.write = keeps
    try:
        run()
    finally:
        checkpoint.write = write
    path.write_bytes(kept[0])
    return path


# -- prompt learning ---------------------------------------------------------------------------------


def use_prompts(cls: Any) -> Callable[[Path], Sequence[Tensor]]:
    def use(path: Path) -> Sequence[Tensor]:
        model, tokenizer, names = prompt_learning.authors()
        found = loaded(cls.load(path, model, tokenizer=tokenizer))
        found.save(path)
        assert repr(found) and found.n_features_in_ == 6
        shown = [] if found.class_specific else [found.features_for(names)]
        return [found.context_, *shown, *([found.logits(rows(6))] if hasattr(found, "classes_") else [])]

    return use


def learn_prompts(path: Path) -> Sequence[Tensor]:
    found = prompt_learning.small_coop(path)
    return [found.losses_, found.logits(rows(6))]


def distil_prompts(path: Path) -> Sequence[Tensor]:
    found = prompt_learning.small_kdpl(path)
    return [found.losses_, found.context_]


def make_prompts(run: Callable[[Path], Any]) -> Callable[[Path], Path]:
    """The file after one of two epochs."""

    def make(folder: Path) -> Path:
        from semobridge_ext.prompts.training import Checkpoint

        path = folder / "run.safetensors"
        return half_way(Checkpoint, lambda: run(path), path)

    return make


def make_discovery(folder: Path) -> Path:
    """The file after one of two epochs."""
    from semobridge_ext.discovery.training_checkpoint import Checkpoint

    path = folder / "run.safetensors"
    return half_way(Checkpoint, lambda: discover(path), path)


# -- findings in tasks --------------------------------------------------------------------------------


def re_tuned(checkpoint: Path | None = None) -> Any:
    data = incremental.findings(dtype=torch.float32)
    changed = {"adaptor": "bottleneck", "width": 3, "epochs": 2, "checkpoint_every": 1}
    return incremental.fit(data, [0, 1], checkpoint=checkpoint, **changed)


def use_re_tune(path: Path) -> Sequence[Tensor]:
    found = loaded(sb.RETune.load(path))
    x, count = rows(found.n_features_in_, 6), len(found.findings_)
    assert found.predict(x).shape == (6, count) and repr(found)
    found.save(path)
    return [found.decision_function(x), found.predict_proba(x)]


def re_tune(path: Path) -> Sequence[Tensor]:
    found = re_tuned(path)
    return [found.losses_, found.decision_function(rows(8))]


def make_re_tune(folder: Path) -> Path:
    """The file after one of two epochs."""
    from semobridge_ext.incremental.training_checkpoint import Checkpoint

    path = folder / "run.safetensors"
    return half_way(Checkpoint, lambda: re_tune(path), path)


# -- what a run goes on from -------------------------------------------------------------------------

SAMPLES = 4


@cache
def _model() -> Any:
    model = towers.TEXT_MODELS["open_clip one layer"]()
    return model


def invert(path: Path) -> Sequence[Tensor]:
    targets = towers.targets(SAMPLES, towers.D, towers.F32)
    start = towers.start(SAMPLES, 1, towers.TEXT, towers.F32)
    found = sb.oti(_model(), targets, init=start, steps=2, batch_size=2, record_steps=(1,), out=path)
    return [found.tokens, found.features, found.losses]


def make_inversion(folder: Path) -> Path:
    invert(folder / "file.safetensors")
    return folder / "file.safetensors"


def make_part(folder: Path) -> Path:
    """The first chunk, as a killed run leaves it."""
    from semobridge_ext.inversion import invert as inversion

    out, save = folder / "whole.safetensors", inversion.Store.save

    class Killed(Exception):
        pass

    def dies(self: Any, index: int, chunk: Any) -> None:
        if index == 1:
            raise Killed
        save(self, index, chunk)

    inversion.Store.save = dies  # type: ignore[method-assign]
    try:
        invert(out)
    except Killed:
        pass
    finally:
        inversion.Store.save = save  # type: ignore[method-assign]
    (path,) = (folder / "whole.safetensors.parts").iterdir()
    return path


def use_part(path: Path) -> Sequence[Tensor]:
    whole = path.parent.parent / "whole.safetensors"
    whole.unlink(missing_ok=True)
    return invert(whole)


def inversion_map(out: Path | None = None) -> Any:
    targets, start = towers.targets(12, towers.D, towers.F32), torch.Generator().manual_seed(1)
    return sb.InversionMap.fit(
        _model(), targets, steps=2, refine=(1,), hidden=3, train_steps=4, generator=start, out=out
    )


def make_map_training(folder: Path) -> Path:
    """The file after the first of four steps, pilots beside it gone."""
    from semobridge_ext.inversion.map_training import Checkpoint

    out = folder / "map.safetensors"
    path = half_way(Checkpoint, lambda: inversion_map(out), folder / "map.safetensors.training.safetensors")
    out.unlink()
    return path


def use_map_training(path: Path) -> Sequence[Tensor]:
    out = path.with_name("map.safetensors")
    out.unlink(missing_ok=True)
    phi = inversion_map(out)
    return [phi.matrix, phi.offset, phi.outer]


def use_inversion_map(path: Path) -> Sequence[Tensor]:
    phi = loaded(sb.InversionMap.load(path))
    phi.save(path)
    assert repr(phi) and phi.num_tokens == len(phi.offset)
    return [phi(rows(len(phi.matrix)))]


def train(path: Path) -> Sequence[Tensor]:
    clf = sb.SeMoBridgeT(P.bridge(), P.text, P.hidden, steps=4, warmup=1, eval_every=2, checkpoint_every=2)
    clf.fit(P.shots, P.labels, validation=(P.queries, P.targets), checkpoint=path)
    return [clf.losses_, clf.decision_function(rows(7))]


def make_checkpoint(folder: Path) -> Path:
    """The file after two of four steps."""
    from semobridge_ext.fewshot.training_checkpoint import Checkpoint

    path = folder / "run.safetensors"
    return half_way(Checkpoint, lambda: train(path), path)


def train_cache(kind: str) -> Callable[[Path], Sequence[Tensor]]:
    def train(path: Path) -> Sequence[Tensor]:
        clf = getattr(sb, kind)(P.text, epochs=2, batch_size=4).fit(P.shots, P.labels, checkpoint=path)
        return [clf.losses_, clf.decision_function(rows(7))]

    return train


def make_cache_checkpoint(kind: str) -> Callable[[Path], Path]:
    """The file after one of two epochs."""

    def made(folder: Path) -> Path:
        path = folder / "run.safetensors"
        train_cache(kind)(path)
        return path

    return made


# -- checkpoints and features of others --------------------------------------------------------------


def make_projections(folder: Path) -> Path:
    path = folder / "model.safetensors"
    tensors = {"text_projection": rows(4, 6).sin(), "visual.proj": rows(4, 5).cos()}
    save_file({n: t.contiguous() for n, t in tensors.items()}, path, {"format": "semobridge no format"})
    return path


def use_projections(path: Path) -> Sequence[Tensor]:
    read_projections("Bridge.from_pretrained", path, ("text", "image"), timeout=60)
    loaded(None)
    b, iso = sb.Bridge.from_pretrained(path), sb.IsoCLIP.from_pretrained(path, k_top=1, k_bottom=1)
    x = rows(b.text_projection.shape[1])
    return [b(x), iso.image(rows(iso.image_projection.shape[0]))]


def make_index(folder: Path) -> Path:
    import json

    make_projections(folder)
    path = folder / "model.safetensors.index.json"
    names = {"text_projection": "model.safetensors", "visual.proj": "model.safetensors"}
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": names}))
    return path


def make_features(folder: Path) -> Path:
    path = folder / "file.safetensors"
    save_file({"features": rows(4)}, path, {"format": "semobridge no format"})
    return path


def use_features(path: Path) -> Sequence[Tensor]:
    return [_read_features(str(path), "features").float()]


S = "safetensors"
TARGETS = [
    Target("Bridge.load", S, ("Bridge.load",), saved(P.bridge), use_bridge, sealed=True),
    Target("LinearMap.load", S, ("LinearMap.load",), saved(linear_map), use_map, sealed=True),
    Target(
        "RoleCentering.load",
        S,
        ("RoleCentering.load",),
        saved(role_centering),
        use_role_centering,
        sealed=True,
    ),
    Target("LinearMap.from_onnx", "bytes", ("LinearMap.from_onnx",), make_onnx, use_onnx),
    Target(
        "IsoCLIP.load",
        S,
        ("IsoCLIP.load",),
        saved(isoclip),
        use_isoclip,
        free=("params", "k_top", "k_bottom"),
        sealed=True,
    ),
    Target(
        "IsoCLIP.load, biases",
        S,
        ("IsoCLIP.load",),
        saved(affine_isoclip),
        use_isoclip,
        free=("params", "k_top", "k_bottom"),
        sealed=True,
    ),
    *(
        Target(f"{kind}.load", S, (f"{kind}.load",), saved(fitted(kind)), use_estimator(kind), sealed=True)
        for kind in MADE
    ),
    Target("Gallery.load", S, ("Gallery.load",), saved(gallery), use_gallery, nan=True, sealed=True),
    Target("SupportSet.load", S, ("SupportSet.load",), saved(support), use_support, nan=True, sealed=True),
    Target("oti(out=)", S, ("oti",), make_inversion, invert, 0.2, sealed=True),
    Target("oti(out=), a part", S, ("oti",), make_part, use_part, 0.2, sealed=True),
    Target(
        "InversionMap.load", S, ("InversionMap.load",), saved(inversion_map), use_inversion_map, sealed=True
    ),
    *(
        Target(
            f"{kind}.fit(checkpoint=)",
            S,
            (f"{kind}.fit",),
            make_cache_checkpoint(kind),
            train_cache(kind),
            0.5,
            sealed=True,
        )
        for kind in ("TipAdapterF", "APET")
    ),
    Target(
        "InversionMap.fit(out=)",
        S,
        ("InversionMap.fit",),
        make_map_training,
        use_map_training,
        0.3,
        sealed=True,
    ),
    Target("SeMoBridgeT.fit(checkpoint=)", S, ("SeMoBridgeT.fit",), make_checkpoint, train, 0.5, sealed=True),
    Target(
        "SpectralFilter.load", S, ("SpectralFilter.load",), saved(spectral_filter), use_filter, sealed=True
    ),
    Target("SpectralGCD.load", S, ("SpectralGCD.load",), saved(discovered), use_gcd, sealed=True),
    Target(
        "SpectralGCD.load, a block", S, ("SpectralGCD.load",), saved(trained_block), use_block, sealed=True
    ),
    Target("load_block_inputs", S, ("load_block_inputs",), make_block_inputs, use_block_inputs, sealed=True),
    Target(
        "SpectralGCD.fit(checkpoint=)", S, ("SpectralGCD.fit",), make_discovery, discover, 0.5, sealed=True
    ),
    Target("RETune.load", S, ("RETune.load",), saved(re_tuned), use_re_tune, sealed=True),
    Target("RETune.fit(checkpoint=)", S, ("RETune.fit",), make_re_tune, re_tune, 0.5, sealed=True),
    Target(
        "CoOp.load", S, ("CoOp.load",), saved(prompt_learning.small_coop), use_prompts(sb.CoOp), sealed=True
    ),
    Target(
        "KDPL.load", S, ("KDPL.load",), saved(prompt_learning.small_kdpl), use_prompts(sb.KDPL), sealed=True
    ),
    Target(
        "CoOp.fit(checkpoint=)",
        S,
        ("CoOp.fit",),
        make_prompts(learn_prompts),
        learn_prompts,
        0.5,
        sealed=True,
    ),
    Target(
        "KDPL.fit(checkpoint=)",
        S,
        ("KDPL.fit",),
        make_prompts(distil_prompts),
        distil_prompts,
        0.5,
        sealed=True,
    ),
    Target(
        "from_pretrained",
        S,
        ("Bridge.from_pretrained", "IsoCLIP.from_pretrained"),
        make_projections,
        use_projections,
        free=("resized", "shape"),
    ),
    Target(
        "from_pretrained, an index",
        "json",
        ("Bridge.from_pretrained", "IsoCLIP.from_pretrained"),
        make_index,
        use_projections,
        depth=1,
    ),
    Target("invert, .safetensors", S, ("invert",), make_features, use_features, nan=True, free=("shape",)),
]
