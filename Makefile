# Two commands do all the set-up: `make demo` and `make test`. They need Python 3.11+, pip and make.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
PYTEST := $(RUN)/python -m pytest

.PHONY: demo test test-all lint audit docs bench-gpu study-gpu sweep-gpu clean

demo: $(VENV)/installed
	$(RUN)/skipalign run recipes/tiny.yaml

# These want one GPU (docs/gpu.md); what is done is not done again.
bench-gpu: $(VENV)/installed
	$(RUN)/python benchmarks/gpu.py

study-gpu: $(VENV)/installed
	$(RUN)/python benchmarks/study_gpu.py --list
	$(RUN)/python benchmarks/study_gpu.py

sweep-gpu: $(VENV)/installed
	$(RUN)/python benchmarks/study_gpu.py --recipe recipes/sweep-gpu.yaml
	$(RUN)/python benchmarks/study_gpu.py --recipe recipes/sweep-gpu.yaml --smallest

test: $(VENV)/installed
	$(PYTEST)

test-all: $(VENV)/installed lint audit
	$(PYTEST)
	$(PYTEST) -m long

lint: $(VENV)/installed
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/pyright
	$(RUN)/bandit -q -c pyproject.toml -r src

# Known vulnerabilities of the pinned packages; a line instead where no service can be asked.
audit: $(VENV)/installed
	$(RUN)/python .ci/audit.py

# Every page and table that is made from results, docstrings and commands, and the Python reference
# from build/api/skipalign.html on.
docs: $(VENV)/installed
	$(RUN)/python benchmarks/pages.py
	$(RUN)/python docs/reference.py --html build/api

$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(RUN)/python -m pip install --quiet -c constraints.txt torch==2.13.0
	$(RUN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs build dist
