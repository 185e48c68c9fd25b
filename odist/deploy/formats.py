"""The files of an exported model, one function a format. All of them load without odist, and none is unpickled."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from odist.deploy.network import Network
from odist.deploy.source import bundled
from odist.errors import UserError
from odist.models.compilable import Compilable

TRACED = 3  # examples of the batch that is traced

LOADER = '''
def load(folder):
    """The network in `folder`, with its weights, in eval mode."""
    import json
    from pathlib import Path

    from safetensors.torch import load_file

    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    network = build(config)
    network.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return network.eval()
'''
BUILDER = '''
def build(config):
    """The network that a config.json describes, with random weights."""
    models = [globals()[one["class"]](*one["arguments"], **one["named"]) for one in config["networks"]]
    return Network(models, binary=config["binary"], num_inputs=len(config["input_names"]), num_states=config["num_states"])
'''
HUGGING_FACE = '''
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput


class OdistConfig(PretrainedConfig):
    """What the networks are made with."""

    model_type = "odist"

    def __init__(self, networks=(), binary=False, input_names=(), num_states=(), **others):
        self.networks, self.binary = list(networks), binary
        self.input_names, self.num_states = list(input_names), list(num_states)
        super().__init__(**others)


class OdistModel(PreTrainedModel):
    """A network that odist has trained; it takes the inputs that config.input_names lists."""

    config_class = OdistConfig

    def __init__(self, config):
        super().__init__(config)
        self.network = build(config.to_dict())
        self.post_init()

    def _init_weights(self, module):
        pass  # the architectures initialise themselves

    def forward(
        self,
        input_ids=None,
        pixel_values=None,
        numeric=None,
        categorical=None,
        states=(),
        attention_mask=None,
        labels=None,
        return_dict=True,
        **others,
    ):
        """Logits, probabilities and the new states; attention_mask is not used, for the networks look back only.

        labels: of each example, or of tokens input_ids themselves, which are shifted here; adds the loss
        """
        given = {
            **others,
            "input_ids": input_ids,
            "pixel_values": pixel_values,
            "numeric": numeric,
            "categorical": categorical,
        }
        logits, probabilities, *states = self.network(*(given[name] for name in self.config.input_names), *states)
        loss = None
        if labels is not None and self.config.binary:
            loss = nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        elif labels is not None:
            scores, wanted = (logits[:, :-1], labels[:, 1:]) if logits.ndim == 3 else (logits, labels)
            loss = nn.functional.cross_entropy(scores.flatten(0, -2), wanted.flatten())
        found = ModelOutput(logits=logits, probabilities=probabilities)
        if loss is not None:
            found = ModelOutput(loss=loss, **found)
        if states:
            found["states"] = tuple(states)
        return found if return_dict else found.to_tuple()
'''


@dataclass(frozen=True)
class Signature:
    """How an exported network is called.

    inputs: sample tensors by name, states included; dynamic: name -> dimensions of any size, each with its name
    outputs: names
    """

    inputs: dict[str, Tensor]
    dynamic: dict[str, dict[int, str]]
    outputs: list[str]


def described(network: Network, *, input_names: list[str]) -> dict[str, Any]:
    """What makes the network again, JSON-able. UserError for an architecture that does not say it."""
    networks = []
    for model in network.models:
        if not isinstance(model, Compilable):
            raise UserError(
                f"{type(model).__name__}: this architecture does not say what it was made with, as those below "
                "odist.models.compilable.Compilable do. Choose --format onnx or torch."
            )
        arguments, named = model.made_with
        networks.append({"class": type(model).__name__, "arguments": list(arguments), "named": named})
    known = {"networks": networks, "binary": network.binary, "num_states": network.num_states}
    return {**known, "input_names": input_names}


def write_safetensors(folder: Path, network: Network, signature: Signature) -> None:
    """Weights, and the architecture's source, which needs torch and safetensors: `model.load(folder)`."""
    names = list(signature.inputs)[: network.num_inputs]
    _write_json(folder / "config.json", described(network, input_names=names))
    _write_weights(folder / "model.safetensors", network)
    heading = "A network that odist has trained. It needs torch and safetensors alone: model.load(FOLDER)."
    (folder / "model.py").write_text(_source(network, heading) + BUILDER + "\n" + LOADER, encoding="utf-8")


def write_hf(folder: Path, network: Network, signature: Signature) -> None:
    """A folder for `transformers.AutoModel.from_pretrained(folder, trust_remote_code=True)`."""
    names = list(signature.inputs)[: network.num_inputs]
    autos = ["AutoModel"]
    autos += ["AutoModelForCausalLM"] if names == ["input_ids"] else []
    autos += ["AutoModelForImageClassification"] if names == ["pixel_values"] else []
    config = {
        "model_type": "odist",
        "architectures": ["OdistModel"],
        "auto_map": {
            "AutoConfig": "modeling_odist.OdistConfig",
            **dict.fromkeys(autos, "modeling_odist.OdistModel"),
        },
        "dtype": "float32",
        **described(network, input_names=names),
    }
    _write_json(folder / "config.json", config)
    _write_weights(folder / "model.safetensors", network, prefix="network.")
    heading = "A network that odist has trained, for transformers."
    (folder / "modeling_odist.py").write_text(
        _source(network, heading) + BUILDER + "\n" + HUGGING_FACE, encoding="utf-8"
    )


def write_torch(folder: Path, network: Network, signature: Signature) -> None:
    """A program for `torch.export.load`, which needs torch alone."""
    torch.export.save(_traced(network, signature), folder / "model.pt2")


def write_onnx(folder: Path, network: Network, signature: Signature) -> None:
    """An ONNX model. UserError if the packages that write it are not installed."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise UserError("--format onnx needs onnx and onnxscript. Type: pip install 'odist[onnx]'") from None
    with _quiet():
        program = torch.onnx.export(
            _traced(network, signature),
            dynamo=True,
            verbose=False,
            input_names=list(signature.inputs),
            output_names=signature.outputs,
        )
        assert program is not None
        program.save(str(folder / "model.onnx"))


WRITERS: dict[str, Callable[[Path, Network, Signature], None]] = {
    "safetensors": write_safetensors,
    "onnx": write_onnx,
    "torch": write_torch,
    "hf": write_hf,
}


def _traced(network: Network, signature: Signature) -> torch.export.ExportedProgram:
    sizes = {name: torch.export.Dim(name) for dims in signature.dynamic.values() for name in dims.values()}
    dynamic = tuple(
        {place: sizes[size] for place, size in signature.dynamic[name].items()} for name in signature.inputs
    )
    frozen = network.requires_grad_(False).eval()
    with _quiet(), torch.no_grad():
        return torch.export.export(frozen, tuple(signature.inputs.values()), dynamic_shapes=(dynamic,))


def _source(network: Network, heading: str) -> str:
    modules = dict.fromkeys(type(model).__module__ for model in network.models)
    return bundled(*modules, Network.__module__, heading=heading) + "\n"


def _write_weights(path: Path, network: nn.Module, *, prefix: str = "") -> None:
    weights = {f"{prefix}{name}": tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(weights, path, metadata={"format": "pt"})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remarks on packages that nothing here uses, and on its own deprecated functions."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
