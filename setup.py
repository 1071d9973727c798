"""The one thing pyproject.toml cannot say: the wheel carries ./configs as the package motionaura_jax.configs."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["motionaura_jax", "motionaura_jax.*"]), "motionaura_jax.configs"],
    package_dir={"motionaura_jax.configs": "configs"},
)
