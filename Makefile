# Two commands do all the set-up on a bare machine with Python 3.10 to 3.13:
#   make demo   installs, evaluates the embedded data set with the shipped weights, draws pictures
#   make test   installs, runs the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= outputs
# Threads that wait without spinning: a second busy process otherwise makes both many times slower.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test slow lint render bench onnx shards clean

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python infer3d.py configs/demo.yaml evaluate.out=$(OUT) --overwrite
	@echo "pictures: $(OUT)/demo/pictures"

# One thread a process, two processes: faster than one process of two threads.
test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" \
		--cov=ptri --cov-report=term:skip-covered

# With the renderer's quick tests, which `make test` skips before `make render`.
slow: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow
	OMP_NUM_THREADS=1 LP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" tests/test_render*.py

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The renderer's extra, without warp-lang (373 MB), which Anny declares and we do not use.
render: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		--no-deps anny moderngl glcontext roma trimesh

# The peers of scripts/benchmark.py. humancalib and its pycalib-simple declare opencv-contrib-python,
# whose files would replace those of opencv-python.
bench: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[bench]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		--no-deps humancalib pycalib-simple

# ONNX graphs of the 2D network; WebDataset shards of rendered images.
onnx: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[export]"

shards: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[shards]"

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .coverage
