# Everything a person or CI runs. `make demo` and `make test` work in a fresh clone: they set up .venv themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNS ?= runs
DATA ?= ../shared/data
COMPRESS_TEST_DATA ?= $(DATA)
export COMPRESS_TEST_DATA

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-results test test-slow lint types check clean exam exam-onnx lenet5-mnist resnet20-cifar10jpeg \
        gate-load plots overhead throughput compact-every compact-every-seeds surgery-speed export-table penalties-mnist \
        lenet5-mnist-weights finetune-gains arm64-instructions arm64-lock harness-honesty

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 24

setup: $(VENV)/.installed ## create .venv with the pinned set of packages

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup ## train, compact, export and benchmark on the embedded digits, in about a minute
	$(BIN)/python experiments/pipeline.py --recipe recipes/digits-demo.toml --out $(RUNS)/demo

test: setup ## the whole test suite, on two cores
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-slow: setup ## what takes minutes: 500 random networks through surgery
	$(BIN)/pytest -m slow

lint: setup ## ruff: errors, style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup ## mypy, strict
	$(BIN)/mypy

check: lint types test ## what CI runs

demo-results: setup ## the demo anew, its table into README.md and docs/results/
	rm -rf $(RUNS)/demo
	$(BIN)/python experiments/pipeline.py --recipe recipes/digits-demo.toml --out $(RUNS)/demo \
	    --markdown docs/results/digits-demo.md --insert README.md

exam: setup ## surgery on every torchvision model and 90 timm families, hours; writes docs/results/surgery-exam.md
	$(BIN)/python experiments/exam.py --out $(RUNS)/exam --markdown docs/results/surgery-exam.md

exam-onnx: setup ## surgery on ONNX files beside surgery on modules, half an hour; writes docs/results/onnx-exam.md
	$(BIN)/python experiments/exam_onnx.py --out $(RUNS)/exam-onnx --markdown docs/results/onnx-exam.md

lenet5-mnist: setup ## LeNet-5 on MNIST ($DATA/MNIST/raw), some ten minutes; writes docs/results/lenet5-mnist-l0.md
	$(BIN)/python experiments/pipeline.py --recipe recipes/lenet5-mnist-l0.toml --out $(RUNS)/lenet5-mnist-l0 \
	    --markdown docs/results/lenet5-mnist-l0.md --min-test-accuracy 0.989 --max-macs-share 0.25 \
	    --max-parameters-share 0.15 --max-latency-ratio 1 -- --data-dir $(DATA)

resnet20-cifar10jpeg: setup ## ResNet-20 on 2,000 images for two epochs: the path, not the accuracy
	mkdir -p $(RUNS)/cifar10-jpeg && tar -xf $(DATA)/cifar10-jpeg.tar.xz -C $(RUNS)/cifar10-jpeg --skip-old-files
	$(BIN)/python experiments/pipeline.py --recipe recipes/resnet20-cifar10jpeg.toml --out $(RUNS)/resnet20-look \
	    --markdown docs/results/resnet20-cifar10jpeg-path.md -- \
	    --data-dir $(RUNS)/cifar10-jpeg --limit 2000 --epochs 2 --strength 4 --set penalty.epochs=2

plots: setup ## the pictures of docs/penalties.md
	$(BIN)/python experiments/penalty_plots.py --out docs/images

overhead: setup ## what penalties add to a training step; needs a quiet machine; writes docs/results/overhead.md
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps torch-pruning==1.6.1
	$(BIN)/python experiments/overhead.py --markdown docs/results/overhead.md

throughput: setup ## training beside a plain loop, an hour; needs a quiet machine; writes docs/results/throughput.md
	mkdir -p $(RUNS)/cifar10-jpeg && tar -xf $(DATA)/cifar10-jpeg.tar.xz -C $(RUNS)/cifar10-jpeg --skip-old-files
	$(BIN)/python experiments/throughput.py speed --data-dir $(DATA) --cifar-dir $(RUNS)/cifar10-jpeg \
	    --scratch $(RUNS)/throughput --markdown docs/results/throughput.md

export-table: setup ## LeNet-5 and ResNet-20 dense, compact and in 8 bits, ten minutes; writes docs/results/export-table.md
	mkdir -p $(RUNS)/cifar10-jpeg && tar -xf $(DATA)/cifar10-jpeg.tar.xz -C $(RUNS)/cifar10-jpeg --skip-old-files
	$(BIN)/python experiments/export_table.py --data-dir $(DATA) --cifar-dir $(RUNS)/cifar10-jpeg \
	    --out $(RUNS)/export-table --markdown docs/results/export-table.md

compact-every: setup ## VGG-16 on CIFAR-10 (JPEG) with and without compaction in training; writes docs/results/
	mkdir -p $(RUNS)/cifar10-jpeg && tar -xf $(DATA)/cifar10-jpeg.tar.xz -C $(RUNS)/cifar10-jpeg --skip-old-files
	$(BIN)/python experiments/compact_every.py --cifar-dir $(RUNS)/cifar10-jpeg --scratch $(RUNS)/compact-every \
	    --markdown docs/results/compact-every.md

compact-every-seeds: setup ## compaction in training over seeds, some two hours; writes docs/results/
	mkdir -p $(RUNS)/cifar10-jpeg && tar -xf $(DATA)/cifar10-jpeg.tar.xz -C $(RUNS)/cifar10-jpeg --skip-old-files
	$(BIN)/python experiments/compact_every_seeds.py narrow-mnist --data-dir $(DATA) \
	    --scratch $(RUNS)/compact-every-seeds --seeds 3 --markdown docs/results/compact-every-seeds.md
	$(BIN)/python experiments/compact_every_seeds.py vgg16-cifar10jpeg --data-dir $(RUNS)/cifar10-jpeg \
	    --scratch $(RUNS)/compact-every-seeds --seeds 3 --markdown docs/results/compact-every-vgg16.md

finetune-gains: setup ## distillation, averages, label smoothing after pruning; an hour; writes docs/results/
	mkdir -p $(RUNS)/cifar10-jpeg && tar -xf $(DATA)/cifar10-jpeg.tar.xz -C $(RUNS)/cifar10-jpeg --skip-old-files
	$(BIN)/python experiments/finetune_gains.py --data-dir $(RUNS)/cifar10-jpeg --scratch $(RUNS)/finetune-gains --seeds 3 \
	    --markdown docs/results/finetune-gains.md

surgery-speed: setup ## speed of surgery and of what it leaves; needs a quiet machine; writes docs/results/
	$(BIN)/python experiments/surgery_speed.py latency --markdown docs/results/surgery-latency.md
	$(BIN)/python experiments/surgery_speed.py rounding --markdown docs/results/surgery-rounding.md
	$(BIN)/python experiments/surgery_speed.py seconds --markdown docs/results/surgery-seconds.md
	$(BIN)/python experiments/selection_cost.py --markdown docs/results/selection-cost.md

harness-honesty: setup ## is bench right where the truth is known? half an hour on a quiet machine; writes docs/results/
	$(BIN)/python experiments/harness_honesty.py --out $(RUNS)/harness-honesty --markdown docs/results/harness-honesty.md

penalties-mnist: setup ## every penalty on LeNet-5, three quarters of an hour; writes docs/results/penalties-mnist.md
	$(BIN)/python experiments/penalty_table.py --data-dir $(DATA) --out $(RUNS)/penalties-mnist \
	    --markdown docs/results/penalties-mnist.md

lenet5-mnist-weights: setup ## LeNet-5 with 200 times fewer single weights, half an hour; writes docs/results/
	$(BIN)/python experiments/single_weights.py --data-dir $(DATA) --out $(RUNS)/lenet5-mnist-weights \
	    --markdown docs/results/lenet5-mnist-weights.md

gate-load: setup ## bench gate 1,000 times in one process, a quarter of an hour; writes docs/results/gate-load.md
	test -f $(RUNS)/demo/model.onnx || $(MAKE) demo
	$(BIN)/python experiments/gate_load.py --model $(RUNS)/demo/model.onnx \
	    --baseline $(RUNS)/demo/model-dense.onnx --markdown docs/results/gate-load.md

clean: ## remove everything that was built here, runs included
	rm -rf $(VENV) $(RUNS) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

arm64-instructions: setup ## instructions on emulated ARM CPUs, some minutes; needs apt; writes docs/results/arm64-instructions.md
	$(BIN)/bench devices setup arm64
	$(BIN)/python experiments/arm64_instructions.py --scratch $(RUNS)/arm64-instructions \
	    --markdown docs/results/arm64-instructions.md

arm64-lock: setup ## the newest files of the emulated ARM64 user space and their sums, into bench/targets/qemu/
	$(BIN)/python experiments/arm64_lock.py
