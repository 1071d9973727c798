"""A toy system that compiles instantly: predicts the mean color of a clip, with noise, a counter and a sharding rule."""

import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from motionaura_jax.core.recipe import Recipe
from motionaura_jax.systems.base import Evaluation, System


@dataclass(frozen=True, kw_only=True)
class ToyRecipe(Recipe):
    noise: float = 0.01
    batch_seconds: float = 0.0
    explode_from: int = 10**9


class ToySystem(System):
    Recipe = ToyRecipe

    def batch_spec(self):
        bucket = self.recipe.data.all_buckets()[0]
        shape = (bucket.batch_size, bucket.num_frames, bucket.height, bucket.width, 3)
        return {"video": jax.ShapeDtypeStruct(shape, jnp.float32), "sample": jax.ShapeDtypeStruct(shape[:1], jnp.int32)}

    def to_arrays(self, batch):
        time.sleep(self.recipe.batch_seconds)
        return {"video": batch["video"], "sample": batch["sample"]}

    def init(self, key):
        return {"color": jax.random.normal(key, (3,)), "matrix": jnp.eye(3)}, {"seen": jnp.zeros((), jnp.int32)}

    def prepare(self, params, extra, batches):
        return {**params, "matrix": params["matrix"] * 2.0}, {"seen": extra["seen"] + 100}

    def loss(self, params, extra, frozen, batch, key, step):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["sample"])
        noise = jax.vmap(lambda k: jax.random.normal(k, (3,)))(keys) * self.recipe.noise
        error = batch["video"].mean((1, 2, 3)) @ params["matrix"] + noise - params["color"]
        loss = jnp.square(error).mean() / (step < self.recipe.explode_from)
        return loss, ({"clips": jnp.int32(len(error))}, {"error": jnp.abs(error).mean()})

    def advance(self, params, extra, stats, key, step):
        return params, {"seen": extra["seen"] + stats["clips"].sum()}, {"microbatches": 1.0 * len(stats["clips"])}

    def evaluate(self, params, extra, frozen, batches):
        videos = [batch["video"] for batch in batches]
        pixels = ((videos[0][0] + 1) * 127.5).astype("uint8")
        return Evaluation(metrics={"clips": float(sum(map(len, videos)))}, videos={"first": pixels})
