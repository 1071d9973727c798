"""The wheel: it carries configs and assets, and the commands work outside a checkout."""

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

NEEDED = 77  # of setuptools; see pyproject.toml


def run(*words: object, cwd: Path, status: int = 0) -> str:
    """Run a program without the paths of this checkout; return what it prints, on stderr if it is to fail."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run([str(word) for word in words], cwd=cwd, env=clean, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    return done.stderr if status else done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """Build a wheel and install it into a virtual environment that sees the libraries of this one; nothing is downloaded."""
    version = importlib.metadata.version("setuptools") if importlib.util.find_spec("setuptools") else "0"
    if int(version.split(".")[0]) < NEEDED:
        pytest.skip(f"needs setuptools {NEEDED} or newer to build, found {version}")
    folder = tmp_path_factory.mktemp("wheel")
    source, place = folder / "source", folder / "venv"
    for name in ("motionaura_jax", "configs"):
        shutil.copytree(root / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(root / name, source)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    offline = ("--no-deps", "--no-index")
    run(*pip, "wheel", *offline, "--no-build-isolation", f"--wheel-dir={folder}", source, cwd=folder)
    shutil.rmtree(source)
    venv.create(place, with_pip=False)
    python = place / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    # A path in a .pth file does not run the .pth files of that folder, among them those of editable installations.
    libraries = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "libraries.pth").write_text("\n".join(libraries))
    (wheel,) = folder.glob("*.whl")
    run(*pip, f"--python={python}", "install", *offline, wheel, cwd=folder)
    return python


def test_the_package_is_the_installed_one(installed: Path, tmp_path: Path) -> None:
    program = "import motionaura_jax.assets as a; print(a.__file__, (a.SCENES / 'model.safetensors').is_file())"
    where, found = run(installed, "-c", program, cwd=tmp_path).split()
    assert Path(where).is_relative_to(installed.parents[1]) and found == "True"


def test_names_of_configs_work_outside_a_checkout(installed: Path, tmp_path: Path) -> None:
    command = installed.with_name("motionaura")
    assert "tokenizer:tiny" in run(command, "train", "--help", cwd=tmp_path)
    for name in ("tokenizer:demo", "text_to_video:tiny", "configs/tokenizer.py:tiny"):
        flags = (f"--config={name}", "--workdir=run", "--config.seed=many")
        assert "error: config.seed=many: expected int" in run(command, "train", *flags, cwd=tmp_path, status=2)
    refused = run(command, "train", "--config=tokeniser:demo", "--workdir=run", cwd=tmp_path, status=2)
    assert "tokeniser: no config has this name; did you mean 'tokenizer'?" in refused


def test_the_included_model_generates_outside_a_checkout(installed: Path, tmp_path: Path) -> None:
    command = installed.with_name("motionaura")
    flags = ("--prompt=a red circle", "--num_inference_steps=1", "--output=a.mp4", "--json")
    assert json.loads(run(command, "sample", *flags, cwd=tmp_path))["drawn"] == 1
    assert (tmp_path / "a.mp4").stat().st_size > 0
