"""Accelerators that programs are compiled for without having one, and what is published of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Final

KERNEL_SECONDS: Final = 2e-6
"""From the start of one small kernel on a GPU to that of the next: an assumption, not published."""

_HOPPER = """
gpu_device_info {{
  cuda_compute_capability {{ major: 9 minor: 0 }}
  core_count: 132
  fpus_per_core: 128
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  memory_bandwidth: {bandwidth}
  device_memory_size: {memory}
}}
runtime_version {{ major: 12 minor: 8 }}
dnn_version_info {{ major: 9 minor: 7 }}
platform_name: "CUDA"
device_description_str: "{name}"
"""
"""What the compiler asks of a GPU, by the data sheets and the limits of compute capability 9.0 in
NVIDIA's CUDA C++ Programming Guide."""


@dataclass(frozen=True)
class Chip:
    """What is published of an accelerator.

    Attributes:
        name: what it is called here.
        kind: how JAX calls such a device, or how that begins.
        platform: that of JAX.
        memory: its bytes.
        bandwidth: bytes a second to and from its memory.
        operations: elementwise operations of float32 a second. Where a multiplication with an
            addition is published as two, half of that.
        integers: operations of 32-bit integers a second.
        kernel_seconds: what a kernel takes at least, where a step is many of them.
        source: where the numbers stand.
    """

    name: str
    kind: str
    platform: str
    memory: float
    bandwidth: float
    operations: float
    integers: float
    kernel_seconds: float
    source: str

    @property
    def is_gpu(self) -> bool:
        """Whether it is one of NVIDIA's GPUs."""
        return self.platform == "cuda"


_HOPPER_OPERATIONS: Final = {"operations": 67e12 / 2, "integers": 33.5e12 / 2}
_HOPPER_SOURCE: Final = (
    "FP32 67 TFLOPS: data sheet; INT32 33.5 TOPS, half of it: NVIDIA H100 Tensor Core GPU "
    "Architecture (2022)"
)
CHIPS: Final = (
    Chip(
        "NVIDIA H100 SXM", "NVIDIA H100", "cuda", 80e9, 3.35e12,
        kernel_seconds=KERNEL_SECONDS,
        source=f"3.35 TB/s: NVIDIA H100 Tensor Core GPU data sheet; {_HOPPER_SOURCE}",
        **_HOPPER_OPERATIONS,
    ),
    Chip(
        "NVIDIA H200 SXM", "NVIDIA H200", "cuda", 141e9, 4.8e12,
        kernel_seconds=KERNEL_SECONDS,
        source=f"4.8 TB/s: NVIDIA H200 Tensor Core GPU data sheet; {_HOPPER_SOURCE}",
        **_HOPPER_OPERATIONS,
    ),
    Chip(
        "TPU v5e", "TPU v5 lite", "tpu", 16e9, 819e9,
        # 197 TFLOPS are 4 units of 128 x 128 multiply-adds: 1.5 GHz. The vector unit has 8 x 128
        # lanes with 4 operations each.
        operations=8 * 128 * 4 * 1.5e9, integers=8 * 128 * 4 * 1.5e9, kernel_seconds=0.0,
        source="819 GB/s and 197 TFLOPS (bf16) with 4 matrix units: cloud.google.com/tpu/docs/v5e; "
        "the vector unit: Austin et al., How to Scale Your Model (2025), chapter TPUs",
    ),
)  # fmt: skip


def described(chip: Chip) -> Any:  # noqa: ANN401 - the description of a device, of JAX
    """A device that a program can be compiled for, and not run on.

    It needs the platform's compiler: of `pip install jax[cuda12]` or of `jax[tpu]`.

    Raises:
        Exception: of one kind or another, where the compiler is not there.
    """
    from jax.experimental import topologies

    if chip.is_gpu:
        target = _HOPPER.format(
            name=chip.name, bandwidth=int(chip.bandwidth), memory=int(chip.memory)
        )
        topology = topologies.get_topology_desc(
            chip.name, "cuda", target_config=target, topology="1x1x1"
        )
    else:
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # asks no server what this machine is
        topology = topologies.get_topology_desc("v5e:2x2", "tpu")
    return topology.devices[0]


def compiler_options(chip: Chip) -> dict[str, str | bool | int]:
    """Options with which a program is compiled for a device that is not there."""
    return {"xla_gpu_autotune_level": 0} if chip.is_gpu else {}  # nothing to try kernels out on
