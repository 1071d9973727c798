"""Captions of rendered scenes: several wordings, each of which names every attribute of the scene."""

from motionaura_jax.scenes.renderer import Background, Scene, SceneObject

_FINITE = {"still": "stays still", "growing": "grows", "rotating": "rotates"}
_GERUND = {"still": "staying still", "growing": "growing", "rotating": "rotating"}
_ONE = (
    "a {noun} {finite} over {ground}",
    "on {ground}, a {noun} {finite}",
    "a {noun} is {gerund} over {ground}",
    "{ground} with a {noun} that {finite}",
    "{noun}, {gerund}, {ground}",
)
_TWO = (
    "a {noun} {finite} while a {noun2} {finite2} over {ground}",
    "on {ground}, a {noun} {finite} while a {noun2} {finite2}",
    "{noun}, {gerund}, with {noun2}, {gerund2}, {ground}",
)
NUM_TEMPLATES = len(_ONE) * len(_TWO)


def _words(item: SceneObject, suffix: str) -> dict[str, str]:
    path = item.motion.replace("-", " and ")
    return {
        f"noun{suffix}": f"{item.size} {item.color} {item.shape}",
        f"finite{suffix}": _FINITE.get(item.motion, f"moves {path}"),
        f"gerund{suffix}": _GERUND.get(item.motion, f"moving {path}"),
    }


def _ground(background: Background) -> str:
    kind = "drifting textured" if background.kind == "drifting" else background.kind
    return f"a {kind} {background.color} background"


def caption(scene: Scene) -> str:
    """Says the scene in words, e.g. "a large red circle moves up over a plain gray background".

    Scenes that differ in an attribute have different captions; `scene.template` (taken modulo the number of wordings)
    changes the wording only.
    """
    wordings = _ONE if len(scene.objects) == 1 else _TWO
    words = {"ground": _ground(scene.background)}
    for item, suffix in zip(scene.objects, ("", "2"), strict=False):
        words |= _words(item, suffix)
    return wordings[scene.template % len(wordings)].format(**words)
