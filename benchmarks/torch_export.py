"""Benchmark of the exported PyTorch denoiser against the twin without FFT: CPU seconds of one forward pass.

    python -m benchmarks.torch_export [--rounds=9]

Width 512, 8 heads, 8 blocks, MLP x4, 8192 codes, 1024 tokens, 180 x 4096 text features, float32.  Weights are random, which
does not affect the timing.  All cases are interleaved in this process.  Requires torch.
"""

import argparse
import os
from collections.abc import Callable
from typing import Any

from benchmarks.timing import interleave

SIZE: dict[str, Any] = {"vocab_size": 8192, "width": 512, "heads": 8, "blocks": 8}
TEXT, GRID = (180, 4096), (4, 16, 16)
BAR = 1.2


def ours(spectral: str, folded: bool) -> Callable[[], object]:
    """Return a forward pass of the exported module, text encoding included."""
    import torch

    from motionaura_jax.exporters.pytorch.modeling_spectral_transformer import SpectralTransformer
    from motionaura_jax.exporters.pytorch.settings import denoiser_settings
    from motionaura_jax.models.denoisers.config import SpectralTransformerConfig

    config = SpectralTransformerConfig(spectral=spectral, text_len=TEXT[0], text_dim=TEXT[1], **SIZE)  # type: ignore[arg-type]
    network = SpectralTransformer(SpectralTransformer.Config(**denoiser_settings(config))).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    tokens = torch.randint(0, SIZE["vocab_size"] + 1, (1, *GRID))
    inputs = (tokens, torch.full((1,), 0.5), torch.full((1,), 8.0), torch.randn(1, *TEXT))
    network = network.fold() if folded else network
    return lambda: network(*inputs)


def twin(spectral: bool) -> Callable[[], object]:
    """Return a forward pass of the network that a torch user would write."""
    import torch

    from benchmarks.torch_twin import TorchDenoiser

    model = TorchDenoiser(**SIZE, text_width=TEXT[1], spectral=spectral).eval()
    inputs = (torch.randint(0, SIZE["vocab_size"], (1, 1024)), torch.tensor([5]), torch.randn(1, *TEXT))
    return lambda: model(*inputs)


def main() -> None:
    """Print the table."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads inflate CPU seconds on shared cores
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(2)
    cases = {
        "twin without FFT": twin(False),
        "twin": twin(True),
        "re_fft2, folded": ours("re_fft2", True),
        "re_fft2, plain": ours("re_fft2", False),
        "hartley, folded": ours("hartley", True),
    }
    with torch.inference_mode():
        timings = interleave(cases, rounds=rounds)
    reference = timings["twin without FFT"]
    print("| network | wall ms | CPU ms | CPU over the twin without FFT |\n|---|---|---|---|")
    for name, timing in timings.items():
        print(f"| {name} | {1e3 * timing.wall:.0f} | {1e3 * timing.cpu:.0f} | {timing.cpu / reference.cpu:.2f} |")
    print(f"\nBar: re_fft2, folded at most {BAR:.2f}")


if __name__ == "__main__":
    main()
