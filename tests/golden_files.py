"""What public reference implementations computed; tests/golden/README.md says which."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "golden"


AGREEMENT: list[tuple["Golden", str, float]] = []
"""Each comparison of this process: file, dtype, and the error as a share of its limit."""


@dataclass(frozen=True)
class Golden:
    """One file: its configuration, limits, inputs and outputs."""

    name: str
    oracle: str
    config: dict[str, Any]
    tol: dict[str, float]
    arrays: dict[str, Tensor]

    def tokens(self, name: str = "tokens") -> Tensor:
        return self.arrays[f"in.{name}"].long()

    def weights(self) -> dict[str, Tensor]:
        """Parameters under the names that the reference gives them."""
        return {key[2:]: x for key, x in self.arrays.items() if key.startswith("w.")}

    def assert_agrees(self, got: Tensor, output: str) -> None:
        """Fail where `got` misses the agreement that its dtype is owed (golden/README.md)."""
        exact = got.dtype in (torch.float64, torch.complex128)
        want = self.arrays[f"{'out64' if exact else 'out'}.{output}"]
        limit = 1e-9 * max(1.0, want.abs().max().item()) if exact else self.tol[output]
        error = (got.detach() - want).abs().max().item()
        AGREEMENT.append((self, "float64" if exact else "float32", error / limit))
        assert got.shape == want.shape, (self.name, output, got.shape, want.shape)
        assert error <= limit, f"{self.name} {output}: error {error:.2e} over {limit:.2e}"


@cache
def golden(name: str) -> Golden:
    with np.load(FOLDER / f"{name}.npz") as file:
        arrays = {
            key: torch.from_numpy(file[key])
            for key in file.files
            if key.startswith(("in.", "w.", "out.", "out64."))
        }
        said = {key: str(file[key]) for key in ("oracle", "config", "tol")}
    return Golden(name, said["oracle"], json.loads(said["config"]), json.loads(said["tol"]), arrays)


def agreement() -> dict[str, dict[str, str | float]]:
    """Of each file that was compared: who made it, and the largest error in each dtype."""
    found: dict[str, dict[str, str | float]] = {}
    for file, dtype, share in sorted(AGREEMENT, key=lambda one: one[0].name):
        entry = found.setdefault(file.name, {"oracle": file.oracle})
        entry[dtype] = max(share, float(entry.get(dtype, 0.0)))
    return found
