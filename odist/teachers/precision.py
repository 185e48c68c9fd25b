"""Cheap teachers: models that only predict, in bfloat16 or with matrices of 8-bit numbers, made once per reload.

A model is prepared after its weights are loaded, and weights that are loaded into a prepared one are cast or quantised on the
way, so that a step pays for the products alone. What is saved and what travels stays float32.
"""

from __future__ import annotations

from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from odist.errors import UserError
from odist.products import Int8Matrix, cast_matrices, in_bf16_products
from odist.tasks.base import Forward

SMALLEST_SIDE = 32  # of a matrix in 8 bits: a smaller one gains nothing


def prepared(model: nn.Module, precision: str) -> nn.Module:
    """Bring a model that only predicts into a precision, in place; one that is in it already stays as it is.

    precision: "fp32", as it is; "bf16", matrices in bfloat16 and batch norms folded into the convolutions before them; "int8",
        products of matrices in 8 bits with a scale for each row
    Raises UserError for int8 where convolutions do the work.
    """
    check(model, precision)
    if precision == "bf16":
        if not getattr(model, "compiled", False):  # a compiler does this itself
            fold_batch_norms(model)
        cast_matrices(model)
    elif precision == "int8":
        quantise_matrices(model)
    return model


def takes_weights(model: nn.Module) -> bool:
    """Whether the weights of a newer snapshot can be loaded into a prepared model; otherwise a new one is made."""
    return not any(isinstance(module, Folded) for module in model.modules())


def with_products_in(forward: Forward, precision: str) -> Forward:
    """`forward` of a model that was `prepared`, its logits in float32."""
    return in_bf16_products(forward) if precision == "bf16" else forward


class Folded(nn.Identity):
    """In place of a batch norm that the convolution before it does, too."""


def fold_batch_norms(model: nn.Module) -> None:
    """Let each convolution do what the batch norm behind it does in eval mode.

    Which one stands behind it is said by a module's `NORM_BEHIND` (name of a convolution -> name of its norm); in a Sequential
    it is the next layer.
    """
    for parent in list(model.modules()):
        children = dict(parent.named_children())
        pairs = dict(getattr(parent, "NORM_BEHIND", {}))
        if isinstance(parent, nn.Sequential):
            pairs = dict(pairwise(children))
        for before, behind in pairs.items():
            convolution, norm = children[before], children[behind]
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                mean, variance = norm.running_mean, norm.running_var
                if mean is None or variance is None:
                    continue  # it has none of its own: it takes the batch's
                convolution.weight, convolution.bias = fuse_conv_bn_weights(
                    convolution.weight,
                    convolution.bias,
                    mean,
                    variance,
                    norm.eps,
                    norm.weight,
                    norm.bias,
                )
                setattr(parent, behind, Folded())


def check(model: nn.Module, precision: str) -> None:
    """Refuse a precision that a model cannot have: UserError for int8 where convolutions do the work."""
    if precision == "int8" and any(isinstance(module, nn.modules.conv._ConvNd) for module in model.modules()):
        raise UserError(
            "algorithm.teacher_precision=int8: the work of this model is in convolutions, and int8 is of matrices. Type "
            "algorithm.teacher_precision=bf16."
        )


def quantise_matrices(model: nn.Module) -> None:
    """Turn the matrices of products into 8-bit ones."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            matrix = parameter.ndim == 2 and min(parameter.shape) >= SMALLEST_SIDE and id(parameter) not in tables
            if matrix and not isinstance(parameter.data, Int8Matrix):
                setattr(module, name, nn.Parameter(Int8Matrix.of(parameter.detach()), requires_grad=False))
    if getattr(model, "_compiled_call_impl", None) is not None:
        model._compiled_call_impl = None  # a compiler sees no 8-bit products here
