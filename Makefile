VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed

OLDEST := .venv-oldest

# the laws, which also hold where JAX makes numbers of 64 bits
LAWS := $(patsubst %,tests/test_%.py,mixing apply aggregation measures rounds cohort client units \
	unit_sums components federation participation defences faults \
	sim membership evaluation purity anonymity oracles models ops scale data contracts errors fuzz \
	modes memory crafted learned shares)

.PHONY: demo test optimized x64 lint types format deps oldest clean

# two minutes on two cores: few seeds, one noise, two servers; experiments.reproduce has them all
demo: $(STAMP)
	$(PYTHON) -m experiments.evaluate --dataset watch --noise 0.1 --attacks passive adaptive --overwrite

test: lint types deps
	$(PYTHON) -m pytest -n 2

# the tests with programs compiled as users' are, not as fast as possible
optimized: $(STAMP)
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 XLA_FLAGS= $(PYTHON) -m pytest -n 2

x64: $(STAMP)
	JAX_ENABLE_X64=1 $(PYTHON) -m pytest -n 2 $(LAWS)

lint: $(STAMP)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

types: $(STAMP)
	$(VENV)/bin/pyrefly check --python-interpreter-path $(PYTHON)

format: $(STAMP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# nothing imported is undeclared, nothing declared is unused
deps: $(STAMP)
	$(VENV)/bin/deptry .

# the library's tests with the lowest versions that pyproject.toml declares
oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest -n 2 tests mixjax --ignore mixjax/datasets \
		$(addprefix --ignore tests/test_,experiments.py reproduce.py resume.py watch.py)

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	python3.11 -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --constraint constraints-oldest.txt --editable . \
		beartype chex hypothesis packaging pytest pytest-xdist
	touch $@

$(STAMP): pyproject.toml constraints.txt
	python3.11 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --constraint constraints.txt --editable ".[experiments,test]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) $(OLDEST) build dist *.egg-info
