# Both targets set up everything on a fresh machine. PYTHON picks the interpreter of the environment (3.10 or newer).
PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test test-fast test-lpips test-launch check pictures docs clean

demo: .venv/installed
	$(BIN)/python -m pcbench +experiment=demo

# A process a core and a thread each: small models gain little from more.
test: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal --durations=10

# For the loop while writing: every method on Wan, and all that is quick.
test-fast: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal -m "not slow"

# LPIPS brings torchvision, whose PyPI build is CUDA's and breaks diffusers beside a CPU torch: it has its own environment.
test-lpips: .venv-lpips/installed
	.venv-lpips/bin/python -m pytest -p tests.torchvision_guard tests/test_lpips.py

# Ray and submitit, beside everything else; a test of a real SLURM cluster runs where there is one.
test-launch: .venv-launch/installed
	OMP_NUM_THREADS=1 .venv-launch/bin/python -m pytest tests/test_launch_cluster.py

check: .venv/installed-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# The two pictures of README, in docs/pictures: a few minutes for the videos of one, the other is from committed records.
# Then what README, docs and a report look like in the browsers of this machine, in site/screenshots.
pictures: .venv/installed docs
	$(BIN)/python -m pcbench +experiment=pictures
	$(BIN)/python -m analysis pictures results/published results/pictures
	$(BIN)/python -m analysis report results/pictures --out site/report
	$(BIN)/python -m tests.screenshots site site/report site/screenshots

# README and docs/ as a site in site/; a warning, of a dead link for one, is an error. It needs no torch.
docs: .venv-docs/installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet

clean:
	rm -rf .venv .venv-lpips .venv-launch .venv-docs site pcbench.egg-info

# Needs neither pcbench nor torch.
.venv-docs/installed: pyproject.toml
	test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check "mkdocs>=1.6,<2" "mkdocs-material>=9.5,<10"
	touch $@

# torch first and alone: its build decides what the rest may install.
.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check torch
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[analysis]"
	touch $@

.venv/installed-dev: .venv/installed
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

# Everything but torchvision and lpips comes from .venv, which a .pth file adds to the path.
.venv-lpips/installed: .venv/installed-dev
	rm -rf .venv-lpips
	$(BIN)/python -m venv .venv-lpips
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > `.venv-lpips/bin/python -c "import site; print(site.getsitepackages()[0])"`/parent.pth
	PIP_CONSTRAINT=constraints.txt .venv-lpips/bin/python -m pip install --quiet --disable-pip-version-check torchvision lpips
	touch $@

.venv-launch/installed: .venv/installed-dev
	rm -rf .venv-launch
	$(BIN)/python -m venv .venv-launch
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > `.venv-launch/bin/python -c "import site; print(site.getsitepackages()[0])"`/parent.pth
	PIP_CONSTRAINT=constraints.txt .venv-launch/bin/python -m pip install --quiet --disable-pip-version-check ray submitit
	touch $@
