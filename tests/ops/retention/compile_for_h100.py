"""Compile the kernels as the launches ask for them, for compute capability 9.0, without a GPU."""

from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from retnet.ops import Layout
from retnet.ops.retention import triton_backend as backend
from retnet.ops.retention import triton_kernels as kernels

SHARED_BYTES = 227 * 1024
POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int32: "*i32",
}


class Compiled:
    """Stands for a kernel: a launch compiles instead, once for each signature."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.seen: set[str] = set()

    def __getitem__(self, grid: Any) -> Any:
        return self.launch

    def launch(self, *args: Any, num_warps: int = 4, num_stages: int = 3, **constants: Any) -> None:
        signature, attributes = {}, {}
        names = self.kernel.arg_names
        for i, (name, value) in enumerate(zip(names, args, strict=False)):
            if isinstance(value, torch.Tensor):
                signature[name] = POINTERS[value.dtype]
                attributes[(i,)] = [["tt.divisibility", 16]]
            elif value is None or (value == 1 and name not in ("T", "segment")):
                constants[name] = value
            else:
                signature[name] = "i32"
                if value % 16 == 0 and name not in ("T", "segment"):
                    attributes[(i,)] = [["tt.divisibility", 16]]
        signature |= dict.fromkeys(constants, "constexpr")
        signature = {name: signature[name] for name in names}
        key = str((signature, constants, num_warps, num_stages))
        if key in self.seen:
            return
        self.seen.add(key)
        made = triton.compile(
            ASTSource(self.kernel, signature, constants, attributes),
            target=GPUTarget("cuda", 90, 32),
            options={"num_warps": num_warps, "num_stages": num_stages},
        )
        print(self.kernel.__name__, constants, made.metadata.shared)
        assert made.metadata.shared <= SHARED_BYTES


def main() -> None:
    """At the widest heads, and both ways in segments with masks at narrow ones."""
    for name in [name for name in dir(kernels) if name.endswith("_kernel")]:
        setattr(kernels, name, Compiled(getattr(kernels, name)))
    backend.kernels = SimpleNamespace(**{**vars(kernels), "INTERPRETED": True})  # type: ignore
    log_decay = torch.zeros(1, dtype=torch.float64)
    q, k, v = (torch.zeros(1, 64, 1, D, dtype=torch.bfloat16) for D in (256, 256, 512))
    S = torch.zeros(1, 1, 256, 512)
    o, _ = backend.chunkwise(q.requires_grad_(), k, v, log_decay, S, None, processors=1)
    torch.autograd.grad(o, q, o)  # the walk with scores of width 512
    backend.step(q[:, :1], k[:, :1], v[:, :1], log_decay, S)
    x = torch.zeros(1, 2048, 1, 64, dtype=torch.bfloat16)
    layout = Layout.of(1, 2048, valid=torch.ones(1, 2048, dtype=torch.bool))
    o, _ = backend.chunkwise(x, x.requires_grad_(), x, log_decay, None, layout, processors=2)
    torch.autograd.grad(o, x, o)
    x = x.detach()[:, :1].half()
    backend.recurrent(x, x, x, log_decay, None, Layout.of(1, 1, valid=x[..., 0, 0] == 0))
    backend.chunkwise(x, x, x, log_decay, None, None)


if __name__ == "__main__":
    main()
