# Two commands do all the set-up on a bare machine with Python 3.10 to 3.13:
#   make demo   installs, evaluates the embedded data set with the shipped weights, draws pictures
#   make test   installs, runs the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= outputs
# Threads that wait without spinning: a second busy process otherwise makes both many times slower.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test slow lint gpu render bench rtm onnx coreml executorch litert phones shards clean

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

# Tests and measures on a CUDA device, within eight minutes, and writes docs/gpu.md.
gpu: $(VENV)/.installed
	$(BIN)/python scripts/gpu.py

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

# Detectors of rtmlib, without the second OpenCV that it declares.
rtm: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt onnxruntime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		--no-deps rtmlib

# ONNX graphs of the 2D network; WebDataset shards of rendered images.
onnx: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[export]"

# Packages of the 2D network for phones, checked: docs/phones.md. Each runtime has an environment of
# its own, for their versions clash with the others'; two of LiteRT's are older than ours.
.venv-%/.installed: pyproject.toml constraints.txt
	test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	sed -e 's/^typing_extensions==.*/typing_extensions==4.12.2/' -e 's/^anyio==.*/anyio==4.14.2/' \
		constraints.txt > .venv-$*/constraints.txt
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check \
		-c .venv-$*/constraints.txt -e ".[dev,$*]"
	touch $@

coreml executorch litert: %: .venv-%/.installed
	OMP_NUM_THREADS=1 .venv-$*/bin/python -m pytest -q tests/test_export.py
	OMP_NUM_THREADS=1 TQDM_DISABLE=1 .venv-$*/bin/python -W ignore scripts/export.py \
		checkpoints/ptri_2d_s0.pt --to $* --precision all --every 4 --overwrite

# All runtimes side by side: the table of docs/phones.md.
phones: .venv-phones/.installed
	OMP_NUM_THREADS=1 TQDM_DISABLE=1 .venv-phones/bin/python -W ignore scripts/benchmark.py phones

shards: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[shards]"

clean:
	rm -rf $(VENV) .venv-* build *.egg-info .pytest_cache .ruff_cache .coverage
