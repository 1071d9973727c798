"""Text adherence of a trained model on held-out prompts: combinations of attributes that never occurred in training.

    python -m benchmarks.adherence --checkpoint=motionaura_jax/assets/scenes [--prompts=64] [--seeds=4]

Prints tables on stderr and one JSON line on stdout, and writes a contact sheet.  The baselines are the same prompts sampled in
one step without guidance, and rendered scenes after the tokenizer alone.  A last table has the likelihood bound by masked share
with true, shuffled and no text, and that of copying neighboring tokens.  `--sample.KEY=VALUE` overrides a
sampling setting of the checkpoint, e.g. `--sample.sampler=ancestral`.
"""

import pathlib
import time
from collections.abc import Sequence
from typing import Any

from motionaura_jax.core import cli
from motionaura_jax.core.limits import Count, Several

PREFIX = "--sample."
SHEET_ROWS = 16


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = cli.Parser("adherence", "Measure which attributes of held-out prompts the generated videos show.")
    parser.prog = "benchmarks.adherence"
    parser.add_argument("--checkpoint", required=True, help="workdir, step or release folder of a text_to_video model")
    parser.add_argument("--tokenizer", default="", help="folder of the tokenizer, if it has moved")
    parser.add_argument("--prompts", type=cli.number(Several), default=64, help="number of held-out prompts")
    parser.add_argument("--seeds", type=cli.number(Count), default=4, help="videos per prompt")
    parser.add_argument("--sheet", type=pathlib.Path, default=pathlib.Path("runs/adherence.png"), help="contact sheet")
    args, flags = parser.parse_with_overrides(argv, prefix=PREFIX)

    return cli.run(
        lambda: _measure(args.checkpoint, args.tokenizer, args.prompts, args.seeds, args.sheet, flags), as_json=True
    )


def _measure(
    checkpoint: str, tokenizer: str, count: int, seeds: int, sheet: pathlib.Path, flags: Sequence[str]
) -> dict[str, Any]:
    from motionaura_jax.core import config
    from motionaura_jax.data.media import contact_sheet
    from motionaura_jax.pipelines import adherence
    from motionaura_jax.pipelines.text_to_video import TextToVideo
    from motionaura_jax.scenes.adherence import HEADER, cells

    started = time.perf_counter()
    pipeline = TextToVideo(checkpoint, tokenizer)
    trained = pipeline.recipe.sample
    values = config.override(config.to_dict(trained), flags, PREFIX)
    sample = config.build(type(trained), values, where="sample")
    prompts = adherence.prompts_for(pipeline, count)
    verdict = adherence.judge(pipeline, prompts, seeds=seeds, sample=sample, keep=SHEET_ROWS)
    parts = verdict.generated, verdict.one_step, verdict.tokenizer
    obeyed, baseline, limits = ([row.to_dict() for row in part.rows] for part in parts)
    cli.show_table(HEADER, [cells(row) for row in obeyed])
    cli.show_table(HEADER, [cells({**row, "attribute": f"one step: {row['attribute']}"}) for row in baseline])
    cli.show_table(HEADER, [cells({**row, "attribute": f"tokenizer alone: {row['attribute']}"}) for row in limits])
    bounds = verdict.bounds
    shares = [f"{round(100 * (level + 1) / len(bounds['true']))} %" for level in range(len(bounds["true"]))]
    cli.show_table(
        ("nats per token, masked up to", *shares), [(n, *(f"{v:.2f}" for v in row)) for n, row in bounds.items()]
    )
    contact_sheet([(one.prompt, one.video) for one in verdict.generated.shown], sheet)
    return {
        "checkpoint": checkpoint,
        "step": pipeline.step,
        "checkpoint_hash": pipeline.digest,
        "prompts": count,
        "seeds": seeds,
        "sample": config.to_dict(sample),
        "adherence": obeyed,
        "one_step": baseline,
        "tokenizer": limits,
        "bounds": bounds,
        "tokenizer_psnr": verdict.tokenizer.psnr,
        "seconds": time.perf_counter() - started,
        "sheet": sheet,
    }


if __name__ == "__main__":
    raise SystemExit(main())
