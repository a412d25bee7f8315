VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: demo test lint types format clean

demo: $(STAMP)
	$(PYTHON) -m experiments.evaluate --dataset watch --overwrite

test: lint types
	$(PYTHON) -m pytest -n 2

lint: $(STAMP)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

types: $(STAMP)
	$(VENV)/bin/pyrefly check --python-interpreter-path $(PYTHON)

format: $(STAMP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(STAMP): pyproject.toml constraints.txt
	python3.11 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --constraint constraints.txt --editable ".[experiments,test]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist *.egg-info
