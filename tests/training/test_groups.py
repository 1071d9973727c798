"""Parameter groups: frozen parameters, scaled learning rates, clipping by group, and the average of the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from motionaura_jax.core import config
from motionaura_jax.core.errors import UserError
from motionaura_jax.core.recipe import CheckpointConfig, OptimizerConfig, ParamGroup
from motionaura_jax.core.trees import leaf_types, merge, partition
from motionaura_jax.parallel.config import MeshConfig
from motionaura_jax.parallel.mesh import make_mesh
from motionaura_jax.scenes import dataset
from motionaura_jax.training import checkpoint, loop, optimizer, state, step
from motionaura_jax.weights import steps as weights
from tests.training.toy import ToyRecipe, ToySystem

DATA = {"batch_size": 8, "height": 4, "width": 4, "num_frames": 2}
NAMES = st.sampled_from(["a", "b", "kernel", "lora_up"])
TREES = st.recursive(st.integers(), lambda inner: st.dictionaries(NAMES, inner, max_size=3), max_leaves=12)


def make(*groups, declared=(), **sections):
    """Build a toy system with groups of the user and groups of its own."""
    sections["optimizer"] = {"decay": "constant", **sections.get("optimizer", {}), "groups": list(groups)}
    system = ToySystem(config.build(ToyRecipe, {"system": "toy", "data": DATA, **sections}))
    system.param_groups = lambda: declared
    return system


def batch(seed):
    video = np.random.default_rng(seed).uniform(-1, 1, (8, 2, 4, 4, 3)).astype(np.float32)
    return {"video": video, "sample": np.arange(8, dtype=np.int32)}


def start(system):
    recipe = system.recipe
    optimize = optimizer.of(system)
    return state.create(system, optimize, recipe.seed), step.make_train_step(system, optimize)


def run(system, steps=3):
    current, train_step = start(system)
    metrics = {}
    for number in range(steps):
        current, metrics = train_step(current, {}, batch(number))
    return current, jax.device_get(metrics)


def gradients(system, current, number):
    """Differentiate the loss of one step by hand."""
    key = jax.random.fold_in(jax.random.key(system.recipe.seed), number)
    loss = lambda params: system.loss(params, current.extra, {}, batch(number), key, current.step)[0]  # noqa: E731
    return jax.grad(loss)(current.params)


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(NAMES, TREES, max_size=3), st.sampled_from(["", "a", "a/b", "lora_(up|down)$", "^$"]))
def test_merge_undoes_partition(tree, pattern):
    chosen, rest = partition(tree, pattern)
    assert merge(rest, chosen) == tree and merge(chosen, rest) == tree
    assert len(jax.tree.leaves(chosen)) + len(jax.tree.leaves(rest)) == len(jax.tree.leaves(tree))


@pytest.mark.parametrize("name", ["adam", "adamw", "adafactor", "muon"])
def test_frozen_parameters_keep_their_bits_and_have_no_state(name):
    system = make({"pattern": "^matrix", "scale": 0}, optimizer={"name": name, "weight_decay": 0.1})
    first, _ = start(system)
    last, _ = run(system)
    np.testing.assert_array_equal(last.params["matrix"], np.eye(3))
    assert np.abs(last.params["color"] - first.params["color"]).min() > 0
    whole, _ = start(make(optimizer={"name": name, "weight_decay": 0.1}))
    names, all_names = leaf_types(last.opt_state), leaf_types(whole.opt_state)
    assert not any("matrix" in leaf for leaf in names) and any("matrix" in leaf for leaf in all_names)
    assert last.ema.keys() == {"color"} and last.inference_params.keys() == {"color", "matrix"}


def test_frozen_parameters_take_no_memory():
    sizes = []
    for groups in ([], [{"pattern": "^matrix", "scale": 0}]):
        current, _ = start(make(*groups))
        sizes.append(sum(leaf.nbytes for leaf in jax.tree.leaves((current.opt_state, current.ema))))
    assert sizes[0] - sizes[1] == 3 * current.params["matrix"].nbytes  # two moments and the average


def test_frozen_parameters_have_no_gradient():
    system = make({"pattern": "^matrix", "scale": 0})
    _, metrics = run(system, 1)
    before, _ = start(system)
    want = np.linalg.norm(gradients(system, before, 0)["color"])
    np.testing.assert_allclose(metrics["gradient_norm"], want, rtol=1e-6)


def test_rules_of_a_system_leave_frozen_parameters_alone():
    system = make({"pattern": "^color", "scale": 0})
    system.advance = lambda params, extra, *_: (jax.tree.map(lambda leaf: leaf + 7.0, params), extra, {})
    first, _ = start(system)
    last, _ = run(system, 1)
    assert_same(last.params["color"], first.params["color"])
    assert last.params["matrix"][0, 0] > 7


def test_a_group_of_the_system_freezes_and_one_of_the_user_comes_first():
    frozen = ParamGroup(pattern="", scale=0.0)
    last, _ = run(make({"pattern": "^color", "scale": 1}, declared=(frozen,)))
    first, _ = start(make())
    assert_same(last.params["matrix"], first.params["matrix"])
    assert np.abs(last.params["color"] - first.params["color"]).min() > 0


def test_a_scaled_group_trains_as_at_the_scaled_rate():
    slowed, _ = run(make({"pattern": "^matrix", "scale": 0.25}, optimizer={"weight_decay": 0.1}), 1)
    alone, _ = run(make(optimizer={"learning_rate": 0.25e-4, "weight_decay": 0.1}), 1)
    plain, _ = run(make(optimizer={"weight_decay": 0.1}), 1)
    np.testing.assert_allclose(slowed.params["matrix"], alone.params["matrix"], rtol=1e-7)
    assert_same(slowed.params["color"], plain.params["color"])


def test_each_clipping_group_is_clipped_by_its_own_norm():
    updates = {"color": jnp.array([3.0, 4.0]), "gan": {"kernel": jnp.full((2, 2), 50.0), "bias": jnp.ones(2)}}
    updates["matrix"] = jnp.full((3, 3), 0.01)
    settings_ = OptimizerConfig(clip_norm=0.5, learning_rate=1.0, decay="constant")
    plain = optimizer.build(OptimizerConfig(clip_norm=0.0, learning_rate=1.0, decay="constant"), 10)
    groups = (ParamGroup(pattern="^gan/", clip="gan"), ParamGroup(pattern="^color", clip="color"))
    optimize = optimizer.build(settings_, 10, groups)
    one = optax.clip_by_global_norm(0.5)
    by_hand = {name: one.update({name: tree}, one.init(None))[0][name] for name, tree in updates.items()}
    params = jax.tree.map(jnp.zeros_like, updates)
    got, _ = optimize.update(updates, optimize.init(params), params)
    want, _ = plain.update(by_hand, plain.init(params), params)
    assert_same(got, want)
    assert_same(by_hand["matrix"], updates["matrix"])


def test_norms_are_logged_for_each_clipping_group():
    system = make({"pattern": "^matrix", "clip": "matrices"})
    current, _ = start(system)
    found = gradients(system, current, 0)
    _, metrics = run(system, 1)
    parts = [metrics["gradient_norm_matrices"], metrics["gradient_norm_other"]]
    np.testing.assert_allclose(parts, [np.linalg.norm(found[name]) for name in ("matrix", "color")], rtol=1e-6)
    np.testing.assert_allclose(metrics["gradient_norm"], np.linalg.norm(parts), rtol=1e-6)
    assert "gradient_norm_other" not in run(make(), 1)[1]


def test_one_group_that_is_not_finite_stops_all():
    system = make({"pattern": "^matrix", "clip": "matrices"}, explode_from=1)
    first, _ = run(system, 1)
    last, metrics = run(system, 2)
    assert metrics["skipped"] == 1
    assert_same((first.params, first.opt_state, first.ema), (last.params, last.opt_state, last.ema))


def test_parameters_can_stay_out_of_the_average():
    last, _ = run(make({"pattern": "^matrix", "averaged": False}))
    plain, _ = run(make())
    assert last.ema.keys() == {"color"}
    assert_same(last.params, plain.params)
    assert_same(last.inference_params, {"color": plain.ema["color"], "matrix": plain.params["matrix"]})
    nothing, _ = run(make({"pattern": "", "averaged": False}), 1)
    assert nothing.ema is None


def test_without_groups_a_run_is_clipped_adamw():
    """Compare parameters, moments and averages with optax over several steps."""
    system = make(optimizer={"clip_norm": 0.3, "weight_decay": 0.1, "learning_rate": 0.05}, train={"ema_decay": 0.9})
    current, _ = start(system)
    decay = {"color": False, "matrix": True}
    reference = optax.chain(optax.clip_by_global_norm(0.3), optax.adamw(0.05, 0.9, 0.99, weight_decay=0.1, mask=decay))
    params, moments, ema = current.params, reference.init(current.params), current.params
    for number in range(4):
        key = jax.random.fold_in(jax.random.key(0), number)
        loss = lambda p, k=key, n=number: system.loss(p, {}, {}, batch(n), k, jnp.int32(n))[0]  # noqa: E731
        updates, moments = reference.update(jax.grad(loss)(params), moments, params)
        params = optax.apply_updates(params, updates)
        memory = min(0.9, (1 + number) / (10 + number))
        ema = jax.tree.map(lambda old, new, m=memory: old + (1 - m) * (new - old), ema, params)
    last, metrics = run(system, 4)
    assert metrics["gradient_norm"] > 0.3
    for got, want in ((last.params, params), (last.ema, ema), (last.opt_state[1][0].nu, moments[1][0].nu)):
        jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=2e-5, atol=1e-7), got, want)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([{"pattern": "decoder"}], r"config.optimizer.groups: 'decoder' matches no parameter, e.g. color"),
        ([{"pattern": "("}], r"config.optimizer.groups\[0\].pattern='\(': not a regular expression"),
        ([{"pattern": "a", "clip": "other"}], r"config.optimizer.groups\[0\].clip=other: .*choose another"),
        ([{"pattern": "a", "scale": -1}], r"config.optimizer.groups\[0\].scale=-1.0: must be at least 0"),
        ([{"pattern": "", "scale": 0}], "all 2 parameters are frozen, e.g. color; give at least one a scale above 0"),
        ([{"pattern": "color", "scale": 0}, {"pattern": "matrix", "scale": 0}], "all 2 parameters are frozen"),
    ],
)
def test_groups_that_cannot_be_meant_are_one_line(groups, message):
    with pytest.raises(UserError, match=message) as error:
        start(make(*groups))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("value", "patterns"),
    [
        ('[{"pattern": "text/", "scale": 0}]', ["text/"]),
        ('[{"pattern": "lora_(up|down)$"}, {"pattern": "[kv]_(even|odd)?$", "scale": 0.1}]', None),
        ("", []),
    ],
)
def test_the_command_line_takes_groups(value, patterns):
    values = config.override({"system": "toy", "data": DATA}, [f"--config.optimizer.groups={value}"])
    groups = config.build(ToyRecipe, values).optimizer.groups
    wanted = ["lora_(up|down)$", "[kv]_(even|odd)?$"] if patterns is None else patterns
    assert [group.pattern for group in groups] == wanted


def test_counts_tell_trained_from_frozen_parameters():
    system = make({"pattern": "^matrix", "scale": 0})
    big = {"color": jax.ShapeDtypeStruct((400, 1000), jnp.float32)}
    big["matrix"] = jax.ShapeDtypeStruct((11900, 1000), jnp.float32)
    assert state.parameter_counts(system, big) == "12.30 M parameters, 0.40 M of them trained"
    assert state.parameter_counts(make(), big) == "12.30 M parameters"


def save(system, folder):
    """Train two steps and save them."""
    current, _ = run(system, 2)
    store = checkpoint.Checkpoints(folder, CheckpointConfig(), config.to_dict(system.recipe))
    store.save(current, checkpoint.Continuation())
    store.close()
    return current


def restored(folder, system):
    store = checkpoint.Checkpoints(folder, CheckpointConfig(), config.to_dict(system.recipe))
    optimize = optimizer.build(system.recipe.optimizer, system.recipe.train.steps, system.param_groups())
    with jax.set_mesh(make_mesh(MeshConfig())):
        current, _ = store.restore(state.abstract(system, optimize, jax.sharding.get_mesh()))
    store.close()
    return current


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
def test_a_checkpoint_with_state_of_frozen_parameters_resumes(name, tmp_path, caplog):
    whole = make(optimizer={"name": name})
    before = save(whole, tmp_path)
    frozen = make({"pattern": "^matrix", "scale": 0}, optimizer={"name": name})
    after = restored(tmp_path, frozen)
    assert jax.tree.structure(after) == jax.tree.structure(start(frozen)[0])
    assert_same(after.params, before.params)
    assert_same(after.ema, {"color": before.ema["color"]})
    known = dict(jax.tree_util.tree_leaves_with_path(before.opt_state))
    for path, leaf in jax.tree_util.tree_leaves_with_path(after.opt_state):
        np.testing.assert_array_equal(leaf, known[path])
    lines = [line for line in (record.getMessage() for record in caplog.records) if "parameter groups" in line]
    assert len(lines) == 2 and all("of frozen parameters, initialized 0 of" in line for line in lines)


def test_a_frozen_parameter_that_trains_again_starts_without_moments(tmp_path):
    before = save(make({"pattern": "^matrix", "scale": 0}), tmp_path)
    after = restored(tmp_path, make())
    assert_same(after.ema, {"color": before.ema["color"], "matrix": before.params["matrix"]})
    adam = after.opt_state[1][0]
    assert not adam.mu["matrix"].any() and int(adam.count) == 2
    assert_same(adam.nu["color"], before.opt_state[1][0].nu["color"])


@pytest.mark.parametrize("group", [{"pattern": "^matrix", "clip": "own"}, {"pattern": "^matrix", "scale": 0.5}])
def test_clipping_and_scales_may_change_between_starts(group, tmp_path):
    before = save(make(), tmp_path)
    after = restored(tmp_path, make(group))
    assert_same(jax.tree.leaves(after), jax.tree.leaves(before))
    assert_same(jax.tree.leaves(restored(tmp_path, make())), jax.tree.leaves(before))


def test_another_optimizer_is_still_refused(tmp_path):
    save(make(), tmp_path)
    with pytest.raises(UserError, match="another architecture: optimizer/"):
        restored(tmp_path, make({"pattern": "^matrix", "scale": 0}, optimizer={"name": "adafactor"}))


def test_another_architecture_is_refused_although_the_groups_differ_too(tmp_path):
    save(make(), tmp_path)
    larger = make({"pattern": "^matrix", "scale": 0})
    larger.init = lambda key: ({"color": jnp.zeros(3), "matrix": jnp.eye(4)}, {"seen": jnp.zeros((), jnp.int32)})
    with pytest.raises(UserError, match="another architecture: params/matrix"):
        restored(tmp_path, larger)


def test_inference_reads_plain_values_of_parameters_without_an_average(tmp_path):
    current = save(make({"pattern": "^matrix", "averaged": False}), tmp_path)
    folder, meta = weights.read_meta(tmp_path)
    assert meta["weights"] == "averaged"
    params, _ = weights.read_weights(folder, current.params, current.extra)
    assert_same(params, jax.device_get(current.inference_params))


def test_a_whole_run_follows_the_groups_of_its_system(tmp_path):
    """Train one step at two scales."""
    size = {"num_frames": 4, "height": 16, "width": 16}
    options = dataset.PRESETS["easy"]
    dataset.write_scenes(tmp_path / "scenes", count=4, split="train", options=options, fps=8.0, **size)
    data = {"manifest": str(tmp_path / "scenes"), "batch_size": 2, "held_out": 0.4, **size}
    values = {"system": "toy", "data": data, "train": {"steps": 1, "ema_decay": 0}, "evaluate": {"clips": 1}}
    moved = {}
    for scale in (1.0, 0.5):
        system = ToySystem(config.build(ToyRecipe, {**values, "optimizer": {"learning_rate": 0.1, "weight_decay": 0}}))
        system.param_groups = lambda scale=scale: (ParamGroup(pattern="^matrix", scale=scale),)
        loop.fit(system, tmp_path / str(scale))
        begun = jax.eval_shape(system.init, jax.random.key(0))
        params, _ = weights.read_weights(weights.read_meta(tmp_path / str(scale))[0], *begun)
        moved[scale] = params["matrix"] - 2 * np.eye(3)  # where `prepare` puts it
    np.testing.assert_allclose(moved[0.5], 0.5 * moved[1.0], rtol=1e-5)
