"""The model `genprop` of a Triton server: a clip and its edited first frame in, the clip with the edit out.

`genprop export --triton` copies this file into a repository as `model.py`, beside the export that it opens.
It needs genprop and its runtime in the server's Python; nothing else of this package imports it.

Tensors pass as DLPack: `as_numpy` of a server before 24.11 reads NumPy 2's arrays wrongly, without a word.
For the same reason a task is the bytes of its name, and no string.

Source: Triton's Python backend (triton-inference-server/python_backend), "Usage".
"""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils  # pyright: ignore[reportMissingImports]  # the server's own

import genprop
from genprop.errors import GenPropError

SECONDS = ("encode", "denoise", "decode", "total")
"""What the output `seconds` holds, in this order."""


class TritonPythonModel:
    """One instance: a process with the model in memory, which runs one clip at a time."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the export, whose hashes are checked, and run it once: a server that is ready is warm.

        Raises:
            GenPropError: the export is damaged, or nothing here can run it; the server says so and stops.
        """
        if args["model_instance_kind"] == "GPU":
            torch.cuda.set_device(int(args["model_instance_device_id"]))
        parameters = json.loads(args["model_config"])["parameters"]
        export = Path(args["model_repository"]) / args["model_version"] / "export"
        self.model = genprop.load(export, backend=parameters["backend"]["string_value"])
        stages = self.model.stages
        clip = stages.config.clip
        frames = np.zeros((clip.frames, clip.height, clip.width, 3), np.uint8)
        self.model.propagate(frames, frames[0])
        pb_utils.Logger.log_info(f"genprop: {stages.backend} on {stages.device}. {stages.why}")

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request; a fault of one is its own response and nobody else's."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        if request.is_cancelled():
            return failure("the client has gone", pb_utils.TritonError.CANCELLED)
        try:
            return self._propagate(request)
        except GenPropError as error:
            return failure(f"{error.message}; {error.hint}".rstrip("; "), pb_utils.TritonError.INVALID_ARG)
        except Exception as error:  # a bug, or memory; the next clip may fare better
            pb_utils.Logger.log_error(traceback.format_exc())
            return failure(f"{type(error).__name__}: {error}", pb_utils.TritonError.INTERNAL)

    def _propagate(self, request: Any) -> Any:
        given = {
            "steps": scalar(request, "steps"),
            "seed": scalar(request, "seed"),
            "composite": scalar(request, "composite"),
            "guidance": scalar(request, "guidance"),
        }
        if (task := array(request, "task")) is not None:
            given["task"] = task.tobytes().decode(errors="replace")
        video, edited = array(request, "frames"), array(request, "edited")
        assert video is not None and edited is not None  # the server refuses a request without them
        result = self.model.propagate(
            video,
            edited,
            **{name: value for name, value in given.items() if value is not None},
        )
        outputs = {
            "frames": result.frames,
            "mask": result.mask,
            "seconds": np.array([result.seconds[stage] for stage in SECONDS], np.float32),
        }
        asked = request.requested_output_names()
        tensors = [
            pb_utils.Tensor.from_dlpack(name, torch.from_numpy(np.ascontiguousarray(value)))
            for name, value in outputs.items()
            if name in asked
        ]
        return pb_utils.InferenceResponse(output_tensors=tensors)


def array(request: Any, name: str) -> np.ndarray | None:
    """An input, where it is in the server's memory, or None where it was not sent."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else torch.from_dlpack(tensor).numpy()


def scalar(request: Any, name: str) -> Any:
    """An input of one number as Python's, or None where it was not sent."""
    value = array(request, name)
    return None if value is None else value.item()


def failure(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(message, code))
