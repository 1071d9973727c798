"""Exports of systems whose parts have parts of their own."""

import dataclasses
import json
import shutil

from motionaura_jax.core.parts import Part
from motionaura_jax.exporters import base
from motionaura_jax.systems import registry
from motionaura_jax.systems.loading import load
from motionaura_jax.systems.mbq_vae import MBQVAERecipe, MBQVAESystem
from motionaura_jax.systems.text_to_video.system import TextToVideoSystem
from tests.systems import tiny


@dataclasses.dataclass(frozen=True, kw_only=True)
class RefinerRecipe(MBQVAERecipe):
    before: str = ""
    places = (*MBQVAERecipe.places, "before")


class Refiner(MBQVAESystem):
    """Autoencoder that refines the videos of a text-to-video model."""

    Recipe = RefinerRecipe
    parts = (Part(role="before", key="before"),)

    def frozen(self):
        return TextToVideoSystem(load(self.recipe.before).recipe).frozen()


def test_a_release_nests_the_parts_of_its_parts(tmp_path, monkeypatch):
    monkeypatch.setitem(registry.SYSTEMS, "refiner", f"{__name__}:Refiner")
    values = tiny.text_to_video(tiny.save_tokenizer(tmp_path / "runs" / "tokenizer"))
    tiny.save_untrained(tmp_path / "runs" / "before", **values)
    before = str(tmp_path / "runs" / "before")
    tiny.save_untrained(tmp_path / "runs" / "refiner", system="refiner", model=tiny.TOKENIZER, before=before)
    run, folder = str(tmp_path / "runs" / "refiner"), tmp_path / "release"
    opened, _ = base.export(run, folder, "release", base.Options())
    assert list(opened.parts) == ["before"] and list(opened.parts["before"].parts) == ["tokenizer"]
    metas = [json.loads((folder / name / "config.json").read_text()) for name in ("", "before", "before/tokenizer")]
    assert [meta["parts"] for meta in metas] == [{"before": "before"}, {"tokenizer": "tokenizer"}, {}]
    shutil.rmtree(tmp_path / "runs")
    assert Refiner(load(folder.rename(tmp_path / "moved")).recipe).frozen()["tokenizer"].vocab_size == 16
