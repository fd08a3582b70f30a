# titokctl in a container, installed as .ci/run installs it for the tests.
#
#   docker build -t titokctl .
#   docker run --rm titokctl make test
#   docker run --rm --gpus all --shm-size=8g -v "$PWD:/work" -w /work titokctl titokctl tokenize images/ -o tokens.h5
#
# The torch that constraints.txt names brings its own CUDA libraries; --gpus all needs NVIDIA's container toolkit.
FROM python:3.11-slim-bookworm

# make and git for the Makefile and `titokctl --version`; gcc for the tests that make system calls fail.
RUN apt-get update && apt-get install -y --no-install-recommends make git gcc libc6-dev && rm -rf /var/lib/apt/lists/*

WORKDIR /titokctl
COPY . .
RUN rm -rf .venv
RUN make .venv/.installed-dev

ENV PATH=/titokctl/.venv/bin:$PATH
CMD ["titokctl", "--help"]
