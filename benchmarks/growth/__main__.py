"""Measure how the time of a token grows, and draw it: python -m benchmarks.growth --device cpu

Writes one JSON document, after every sweep, and a PNG for each. Where matplotlib is missing, draw them
elsewhere from the document: --redraw growth-cuda.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm.auto import tqdm

from benchmarks.gpu.machine import device_name, missing_gpu
from benchmarks.growth.sweeps import SIZES, SWEEPS, GrowthSizes, Rates, measure_rates
from trimtab.guidance.files import write_json

KIND = "trimtab growth"


def measure(device: torch.device, sizes: GrowthSizes, names: list[str], path: Path) -> dict[str, Any]:
    rates = measure_rates(device, sizes)
    report = _header(device, sizes, rates)
    num_points = sum(len(SWEEPS[name].places(sizes)) for name in names)
    with tqdm(total=num_points, desc="growth", unit="point") as bar:
        for name in names:
            sweep, points = SWEEPS[name], []
            for point in sweep.run(device, sizes, rates):
                points.append(point.as_dict())
                bar.update()
                bar.set_postfix_str(f"{name} {point.x}")
            report["sweeps"][name] = {"axis": sweep.axis, "fixed": sweep.fixed(sizes), "points": points}
            write_json(path, report)
    return report


def _header(device: torch.device, sizes: GrowthSizes, rates: Rates) -> dict[str, Any]:
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return {
        "kind": KIND,
        "machine": f"{device_name(device)}{threads}, torch {torch.__version__}",
        "transformers": transformers.__version__,
        "dtype": str(sizes.dtype).removeprefix("torch."),
        "gb_per_second": float(f"{rates.bytes_per_second / 1e9:.4g}"),
        "gflops": float(f"{rates.flops_per_second / 1e9:.4g}"),
        "sweeps": {},
    }


def draw(report: dict[str, Any], folder: Path, suffix: str) -> None:
    from benchmarks.growth.plot import plot_sweep  # noqa: PLC0415  a machine that measures may lack it

    for name in report["sweeps"]:
        plot_sweep(report, name, folder / f"growth-{suffix}-{name}.png")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--sizes", choices=list(SIZES), help="default: those of the device")
    parser.add_argument("--sweeps", nargs="+", choices=list(SWEEPS), default=list(SWEEPS))
    parser.add_argument("--out", type=Path, help="the document; default: kernels/results/growth-DEVICE.json")
    parser.add_argument("--plots", type=Path, default=Path("kernels"), help="folder of the pictures")
    parser.add_argument("--redraw", type=Path, help="measure nothing: draw this document again")
    options = parser.parse_args()
    if options.redraw is not None:
        report = json.loads(options.redraw.read_text(encoding="utf-8"))
        draw(report, options.plots, options.redraw.stem.removeprefix("growth-"))
        return
    reason = missing_gpu() if options.device == "cuda" else None
    if reason is not None:
        raise SystemExit(f"error: {reason}")
    out = options.out or Path("kernels/results") / f"growth-{options.device}.json"
    report = measure(
        torch.device(options.device), SIZES[options.sizes or options.device], options.sweeps, out
    )
    try:
        draw(report, options.plots, options.device)
    except ModuleNotFoundError as error:
        print(f"{error}: draw elsewhere, with --redraw {out.name}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
