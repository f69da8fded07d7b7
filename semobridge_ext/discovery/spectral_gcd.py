"""SpectralGCD on features: classes known and unknown, clustered in a space of concepts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from semobridge_ext import _errors
from semobridge_ext._schema import need, restoring
from semobridge_ext.discovery import network, vision_block
from semobridge_ext.discovery.class_names import encode_labels, name_classes
from semobridge_ext.discovery.prediction import Predictions
from semobridge_ext.discovery.settings import check_settings, settings_of
from semobridge_ext.discovery.spectral_gcd_file import FORMAT, GIVEN_AGAIN, read
from semobridge_ext.discovery.training import Trainer, train
from semobridge_ext.discovery.training_data import block_inputs, training_data, views_of
from semobridge_ext.fewshot.estimator import exactly, not_fitted
from semobridge_ext.fewshot.estimator_file import save_estimator
from semobridge_ext.runtime.plain_modes import plain_modes

if TYPE_CHECKING:
    from typing_extensions import Self


class SpectralGCD(Predictions):
    """Generalized category discovery: labelled images of old classes, unlabelled ones of old and new.

        f′ = norm(f̂ + f̂ M)    z = f′·T̂ᵀ/t    u = z·A + b    logits = norm(u)·norm(P)ᵀ
        L = (1−w)·(distillation + memax·entropy + contrast) + w·(supervised + supervised contrast) + L_T
        L_T = forward_kl·KL(T‖S) + reverse_kl·KL(S‖T)

    T̂ are the concepts that ``SpectralFilter`` keeps, with the names of the old classes; z says how much of
    each an image shows, and the classes are found in it. A frozen teacher's z* = cos/t of the same images
    keeps z in place, both ways. ``docs/methods.md`` has every term.

    Without ``model`` this trains what stands on features. The paper's last vision block is replaced by the
    adapter M [D, D], a residual linear map that starts at 0: without something to train before z the two
    divergences would be constants. With ``model`` the block itself is trained, on what
    ``discovery.cache_block_inputs`` keeps of the frozen blocks before it, and there is no M. Biases are not
    decayed, and everything is float32 (float64 for float64 input) where the authors' program trains float16
    weights.

    Args:
        concept_features: [K, D] floating-point text features of the concepts, in the student's space. None:
            no concepts; the prototypes and the projector then stand on f′ itself, which is the parametric
            classifier of SimGCD, and there is no teacher.
        model: a CLIP model with a class token, of a family that ``semobridge_ext.clip`` lists. Its last
            vision block is trained, as a copy; LN_post and the projection stay. X is then block inputs.
        num_classes: C, old and new together, ≥ 2. The method takes it as known.
        temperature: t of z and z*.
        width, hidden, projection: H of u, the hidden layers and the output of the projector.
        adapter: False leaves M out.
        epochs, batch_size: each epoch draws N images with replacement, labelled and unlabelled ones about
            half and half; a batch holds two views of each.
        lr, adapter_lr: SGD's first rates, of all else and of M or the block; a cosine takes them to a
            thousandth.
        momentum, weight_decay: of SGD.
        supervised_weight: w. entropy_weight: memax (the paper: 2 on CUB and Cars, 4 on CIFAR-100, else 1).
        forward_kl, reverse_kl: weights of the two divergences; 0 leaves one out.
        first_temperature, last_temperature, warmup: of the self-distillation's targets, linear over the
            first ``warmup`` epochs, then constant.
        seed: of the parameters and of all draws.
        checkpoint_every: epochs between two writes of the checkpoint.
        progress: a bar on standard error.

    Attributes:
        classes_: [C] names: the old classes sorted, then the new clusters. Those are numbers after the
            largest where the old names are numbers from 0 up, "new 1", "new 2", … beside texts, else
            ("new", i). old_classes_: the first of them, which had labels. losses_: [epochs] float64 means.
        n_features_in_: D.

    Raises:
        TypeError, ValueError: at ``fit``, for settings out of their range.

    Numerics: deterministic for one seed, device and number of threads; a resumed run has the bits of an
        unbroken one. The sums of z and of the divergences are those of ``torch.mm`` and
        ``ops.symmetric_kl``. Prediction folds A and T̂ into one D×H matrix, made in float64.

    Memory: the features or block inputs (a mapped file stays one), and a step's 2B rows as wide as K, H and
        ``hidden``; the teacher's z* is made a batch at a time. With ``model`` a step keeps keys, values and
        norms of 2B·L tokens for the gradient. A saved file holds the adapter or the block, the D×H matrix,
        the prototypes and the concepts.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> noise = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
        >>> x, y = torch.eye(4).repeat(8, 1) + 0.05 * noise, ["a", None, "b", None] * 8
        >>> gcd = sb.SpectralGCD(num_classes=4, hidden=16, projection=8, epochs=2, batch_size=16)
        >>> gcd.fit(x, y).predict(x).shape
        (32,)

    Paper: SpectralGCD; contrast and classifier are those of SimGCD (arXiv 2211.11727).
    """

    def __init__(
        self,
        concept_features: Any = None,  # [K, D]
        *,
        model: Any = None,
        num_classes: int = 2,
        temperature: float = 0.01,
        width: int = 768,
        hidden: int = 2048,
        projection: int = 256,
        adapter: bool = True,
        epochs: int = 200,
        batch_size: int = 128,
        lr: float = 0.1,
        adapter_lr: float = 0.005,
        momentum: float = 0.9,
        weight_decay: float = 5e-5,
        supervised_weight: float = 0.35,
        entropy_weight: float = 1.0,
        forward_kl: float = 1.0,
        reverse_kl: float = 1.0,
        first_temperature: float = 0.07,
        last_temperature: float = 0.04,
        warmup: int = 30,
        seed: int = 0,
        checkpoint_every: int = 10,
        progress: bool = False,
    ) -> None:
        self.concept_features, self.model = concept_features, model
        self.num_classes, self.temperature = num_classes, temperature
        self.width, self.hidden, self.projection, self.adapter = width, hidden, projection, adapter
        self.epochs, self.batch_size, self.lr, self.adapter_lr = epochs, batch_size, lr, adapter_lr
        self.momentum, self.weight_decay = momentum, weight_decay
        self.supervised_weight, self.entropy_weight = supervised_weight, entropy_weight
        self.forward_kl, self.reverse_kl = forward_kl, reverse_kl
        self.first_temperature, self.last_temperature = first_temperature, last_temperature
        self.warmup, self.seed, self.checkpoint_every = warmup, seed, checkpoint_every
        self.progress = progress

    def __repr__(self) -> str:
        return f"SpectralGCD(num_classes={self.num_classes}, epochs={self.epochs}, seed={self.seed})"

    # -- fitting -----------------------------------------------------------------------------------

    @plain_modes()
    def fit(self, X: Any, y: Any, *, teacher: Any = None, checkpoint: Any = None) -> Self:
        """Trains on all images, labelled and not.

        Args:
            X: [N, D] student image features, a floating-point tensor or array, any length of rows; or
                [V, N, D], V cached views of each image, of which a step takes two different ones. With one
                view the two are the same row, and the contrast has less to say. With ``model``: block inputs
                [V, N, L, T] or [N, L, T], of which a batch at a time is converted to float32.
            y: N labels: the class of a labelled image; None, or the number −1, for an unlabelled one.
            teacher: (image features [N, E], concept features [K, E]) of the teacher, the concepts in the
                order of ``concept_features``. Needed unless both divergences have weight 0 or there are no
                concepts.
            checkpoint: a file that is written during training, and continued from where it exists. It
                depends on the bytes of all tensors and on every setting but ``checkpoint_every`` and
                ``progress``. One run holds it at a time, by ``<checkpoint>.lock``.

        Returns:
            The estimator itself.

        Raises:
            TypeError: no floating-point rows, settings that are no numbers.
            ValueError: NaN or infinite rows; shapes that do not fit; no labelled image, or more old classes
                than ``num_classes``; fewer images than a batch; a teacher that is missing or has nothing to
                teach; a checkpoint of other data or settings, which are named; a loss that diverged. The
                estimator is then as it was before.
        """
        where = "SpectralGCD.fit"
        check_settings(where, self.get_params())
        block = None if self.model is None else vision_block.block_of(where, self.model)
        x = views_of(where, X) if block is None else block_inputs(where, X, block)
        x = x[None] if block is not None and x.dim() == 3 else x
        if x.shape[1] < self.batch_size:
            got, remedy = f"{x.shape[1]} rows", "pass a smaller batch_size"
            contract = f"have at least batch_size={self.batch_size} rows"
            raise ValueError(_errors.message(where, "X", contract, got, remedy))
        old, codes = encode_labels(where, y, x.shape[1], self.num_classes)
        taught = self.forward_kl > 0 or self.reverse_kl > 0
        data = training_data(where, x, codes, self.concept_features, teacher, taught, block)
        trainer = Trainer(data, settings_of(self.get_params(), data))
        with exactly(x.device):
            train(trainer, checkpoint, self.checkpoint_every, self.progress)
            folded = network.folded(trainer.parameters, data.concepts, self.temperature)
        fixed = {} if data.block is None else data.block.fixed
        self._facts = None if data.block is None else data.block.facts
        self._folded, self._concepts, self.losses_ = {**folded, **fixed}, data.concepts, trainer.losses
        self.n_features_in_ = data.width
        self._set_names(name_classes(old, self.num_classes), len(old))
        return self

    # -- files -------------------------------------------------------------------------------------

    def save(self, path: Any) -> None:
        """Writes a safetensors file with what prediction, and a new fit, need.

        Args:
            path: the file; it is replaced as a whole.

        Raises:
            ValueError: not fitted. OSError: the file cannot be written.
        """
        if not hasattr(self, "classes_"):
            raise not_fitted(self)
        tensors = {**self._folded, "losses": self.losses_}
        if self._concepts is not None:
            tensors["concepts"] = self._concepts
        params = {n: v for n, v in self.get_params().items() if n not in GIVEN_AGAIN}
        facts = None if self._facts is None else self._facts._asdict()
        fields = {"names": self._names, "old": len(self.old_classes_), "params": params, "block": facts}
        save_estimator(path, FORMAT, tensors, {**fields, "width": self.n_features_in_})

    @classmethod
    def load(cls, path: Any) -> Self:
        """Reads what ``save`` wrote.

        Args:
            path: the file.

        Raises:
            FileNotFoundError: no such file. ValueError: a foreign or truncated file, which is named.
        """
        found = read("SpectralGCD.load", path, set(cls._parameter_names()))
        self = cls(found.tensors.get("concepts"), **found.params)
        with restoring("SpectralGCD.load", path):
            check_settings("SpectralGCD.load", self.get_params())
            classes = found.tensors["prototypes"].shape[0]
            need(
                "SpectralGCD.load",
                path,
                self.num_classes == classes,
                f"num_classes {classes}",
                self.num_classes,
            )
            self._concepts, self.losses_ = found.tensors.pop("concepts", None), found.tensors.pop("losses")
            self._folded, self._facts, self.n_features_in_ = found.tensors, found.facts, found.width
            self._set_names(found.names, found.old)
        return self
