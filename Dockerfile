# CPU:     docker build -t motionaura .
# NVIDIA:  docker build -t motionaura --build-arg EXTRA=cuda12 .    then   docker run --gpus all --shm-size=8g ...
# Extras are a list (cuda12,cloud).  The CUDA libraries come as Python wheels, so that only the driver of the host is needed.
#
#   docker run --rm motionaura                                    what works in this image
#   docker run --rm --user "$(id -u):$(id -g)" -e HOME=/workspace -v "$PWD":/workspace motionaura train --config=... --workdir=runs/...
#
# --user and HOME: files in the mounted folder are read and written as yours, whatever your uid is.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim

ARG EXTRA=""
WORKDIR /opt/motionaura_jax

# Dependencies first: a change of our own code does not install them again.
COPY requirements.txt pyproject.toml setup.py README.md LICENSE ./
COPY motionaura_jax/__init__.py motionaura_jax/
RUN mkdir configs \
 && pip install --no-cache-dir -c requirements.txt ".${EXTRA:+[$EXTRA]}" \
 && pip uninstall --yes motionaura_jax

COPY motionaura_jax motionaura_jax
COPY configs configs
RUN pip install --no-cache-dir --no-deps .

RUN useradd --create-home --uid 1000 motionaura \
 && mkdir /workspace && chown motionaura /workspace
USER motionaura
WORKDIR /workspace
ENTRYPOINT ["motionaura"]
CMD ["doctor"]
