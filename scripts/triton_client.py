"""A clip through a Triton server that runs genprop: a client of one page, to copy from.

    python scripts/triton_client.py clip.mp4 --edited first.png --out edited.mp4 --url localhost:8000

Speaks the server's HTTP protocol (KServe v2 with Triton's binary extension) with the standard library and
NumPy; `infer` is all of it. genprop itself only reads and writes the videos here.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from genprop.video import read_clip, read_image, write_clip

TYPES = {"uint8": "UINT8", "int32": "INT32", "int64": "INT64", "float32": "FP32", "bool": "BOOL"}
DTYPES = {name: dtype for dtype, name in TYPES.items()}
HEADER = "Inference-Header-Content-Length"


class Refused(Exception):
    """The server answered with an error: its HTTP status and what it said."""


def infer(
    connection: http.client.HTTPConnection, model: str, inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """One request: a JSON header that names the tensors, then their bytes; the answer looks the same.

    Raises:
        Refused: the server, or the model, answered with an error.
    """
    tensors = {name: np.ascontiguousarray(value) for name, value in inputs.items()}
    header = {
        "inputs": [
            {
                "name": name,
                "shape": value.shape,
                "datatype": TYPES[value.dtype.name],
                "parameters": {"binary_data_size": value.nbytes},
            }
            for name, value in tensors.items()
        ],
        "parameters": {"binary_data_output": True},
    }
    text = json.dumps(header).encode()
    body = b"".join([text, *(value.tobytes() for value in tensors.values())])
    connection.request("POST", f"/v2/models/{model}/infer", body, {HEADER: str(len(text))})
    response = connection.getresponse()
    answer = response.read()
    if response.status != 200:
        raise Refused(f"{response.status}: {answer.decode(errors='replace')}")
    at = int(response.headers[HEADER])
    outputs = {}
    for tensor in json.loads(answer[:at])["outputs"]:
        size = tensor["parameters"]["binary_data_size"]
        flat = np.frombuffer(answer[at : at + size], DTYPES[tensor["datatype"]])
        outputs[tensor["name"]], at = flat.reshape(tensor["shape"]), at + size
    return outputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--edited", type=Path, required=True, help="the edited first frame")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--url", default="localhost:8000", help="HOST:PORT of the server")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    clip = read_clip(given.video)
    inputs = {"frames": clip.frames, "edited": read_image(given.edited), "seed": np.array([given.seed])}
    if given.steps is not None:
        inputs["steps"] = np.array([given.steps], np.int32)
    try:
        answer = infer(http.client.HTTPConnection(given.url), "genprop", inputs)
    except Refused as error:
        sys.exit(str(error))
    write_clip(given.out, answer["frames"], fps=clip.fps, audio_from=given.video)
    seconds = dict(zip(("encode", "denoise", "decode", "total"), answer["seconds"].tolist(), strict=True))
    print(json.dumps({"out": str(given.out), "frames": len(answer["frames"]), "seconds": seconds}))


if __name__ == "__main__":
    main()
