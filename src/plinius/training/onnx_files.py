"""A mirrored Darknet network as an .onnx file, in clear: for other programs that run networks."""

import logging
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plinius.darknet.layers.recurrent import Recurrent
from plinius.darknet.losses.base import BoxLoss
from plinius.darknet.network import Network
from plinius.errors import CfgError, NotInstalledError
from plinius.files import publish

_MAX_BYTES = 2**31 - 1  # of a message of protobuf, which the file is


def export_onnx(network: Network, path: Path, metadata: dict[str, str]) -> list[str]:
    """Write a network to a new file; returns the names of its outputs.

    Raises as `onnx_file` does, and StorageError.
    """
    data, names = onnx_file(network, metadata)
    with publish(path) as file:
        file.write(data)
    return names


def onnx_file(network: Network, metadata: dict[str, str]) -> tuple[bytes, list[str]]:
    """The bytes of a file of a network in evaluation mode, and the names of its outputs.

    Its input is `input`, float32 (records, *input_shape), for any number of records. Its output is
    `output` (records, values); of a network that finds boxes `layer_N` for each [yolo], [region] or
    [detection] with number N: what that layer puts out, before boxes are made of it. `metadata`
    becomes that of the file. Raises NotInstalledError without the packages onnx and onnxscript;
    CfgError for recurrent layers and for what torch cannot export.
    """
    for package in ("onnx", "onnxscript"):
        if find_spec(package) is None:
            raise NotInstalledError(
                f"An .onnx file needs the package {package}",
                "Install Plinius with its extra onnx: pip install '.[onnx]' in a clone",
            )
    for layer in network.sequence:
        if isinstance(layer, Recurrent):
            raise layer.section.error(
                "keeps a state from pass to pass, which an .onnx file does not hold",
                "Export to .weights or .safetensors",
            )
    outputs = _Outputs(network).eval()
    data = _exported(network, outputs, metadata)
    if len(data) > _MAX_BYTES:
        raise CfgError(
            f"{network.name} is larger than an .onnx file can be", "Export to .safetensors"
        )
    return data, outputs.names


class _Outputs(nn.Module):
    """The outputs of a network, by name."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        heads = [layer for layer in network.sequence if isinstance(layer, BoxLoss)]
        self.names = [f"layer_{layer.section.index}" for layer in heads] or ["output"]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map (records, *input_shape) to all outputs."""
        if self.names == ["output"]:
            return (self.network(x),)
        heads = self.network.heads(x)
        return tuple(y for layer, y in heads if isinstance(layer, BoxLoss))


def _exported(network: Network, outputs: _Outputs, metadata: dict[str, str]) -> bytes:
    x = torch.zeros(2, *network.input_shape)
    batch: Any = torch.export.Dim("records")
    told = logging.getLogger("torch.onnx")
    level = told.level
    try:
        told.setLevel(logging.CRITICAL)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                outputs, (x,), dynamo=True, verbose=False, dynamic_shapes={"x": {0: batch}},
                input_names=["input"], output_names=outputs.names,
            )  # fmt: skip
        if program is None:
            raise RuntimeError("there is no program")
        program.model.metadata_props.update(metadata)
        data: bytes = program.model_proto.SerializeToString()
    except Exception as error:  # torch.onnx raises nearly anything
        raise CfgError(
            f"torch cannot export {network.name}: {str(error).strip().splitlines()[0][:200]}",
            "Export to .weights or .safetensors",
        ) from None
    finally:
        told.setLevel(level)
    return data
