# The commands of this repository. Python 3.10 to 3.13 is all they need: make demo PYTHON=python3.12
PYTHON ?= python3
BIN := .venv/bin
# ComfyUI does not pin torch; these three belong together.
TORCH := torch==2.11.0 torchvision==0.26.0 torchaudio==2.11.0
COMFYUI := 0.30.0
COMFYUI_OLDEST := 0.18.2
# The oldest transformers that is supported, with the releases of its time, beside the newest in .venv.
OLDEST := .cache/transformers-4.57
OLDEST_PACKAGES := transformers==4.57.6 tokenizers==0.22.1 huggingface_hub==0.36.0 diffusers==0.36.0 \
	httpx==0.28.1 httpcore==1.0.9

# Tests that start no server run side by side, a file's in one process.
MANY := -n auto --maxprocesses 4 --dist loadfile

.PHONY: help install demo test test-library test-library-oldest test-comfyui test-comfyui-oldest test-browser lint \
	bench bench-training bench-refvie train-nano bench-nano ablate-nano workflows locales browser clean
.NOTPARALLEL:

help: ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 24

install: .venv/.installed ## make .venv with everything that the commands below need

.venv/.installed: pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed.")'
	$(PYTHON) -m venv .venv
	comfyui=$$($(BIN)/python tools/comfyui.py fetch $(COMFYUI)) && \
	$(BIN)/pip install $(TORCH) -e '.[dev]' -r "$$comfyui/requirements.txt"
	touch $@

$(OLDEST)/.installed: .venv/.installed
	rm -rf $(OLDEST)
	$(BIN)/pip install --no-deps --target $(OLDEST) $(OLDEST_PACKAGES)
	touch $@

demo: install ## edit a clip of the toy world in a real ComfyUI, into output/demo
	$(BIN)/python tools/demo.py

test: test-library test-library-oldest test-comfyui test-comfyui-oldest ## run all tests but the browser's

# pytest is never started as python -m pytest: that puts this folder on sys.path, where nodes/ shadows ComfyUI's.
test-library: install
	$(BIN)/pytest $(MANY) tests --ignore=tests/comfy --ignore=tests/browser

test-library-oldest: $(OLDEST)/.installed
	PYTHONPATH="$(CURDIR)/$(OLDEST)" $(BIN)/python -c 'import transformers as t; assert t.__version__ == "4.57.6", t.__file__'
	PYTHONPATH="$(CURDIR)/$(OLDEST)" $(BIN)/pytest $(MANY) tests/core/test_mllm.py tests/core/test_pipeline.py \
		tests/core/test_several_references.py tests/core/test_download.py tests/training/test_trainer.py

test-comfyui: install
	$(BIN)/pytest tests/comfy --comfyui $(COMFYUI)

# test_versions.py starts the versions in between by itself; a trained LoRA is as any other, which test_lora.py has,
# and what the toy model edits is not ComfyUI's.
test-comfyui-oldest: install
	$(BIN)/pytest tests/comfy --comfyui $(COMFYUI_OLDEST) --ignore=tests/comfy/test_versions.py \
		--ignore=tests/comfy/test_training.py --ignore=tests/comfy/test_nano.py --ignore=tests/comfy/test_demo.py

test-browser: browser ## run the workflows on the real canvas in headless Chromium
	$(BIN)/pytest tests/browser

# Chromium comes from the system: root on Debian gets it here, all others are told how.
browser: install
	$(BIN)/pip install -q -e '.[browser]'
	@if ! $(BIN)/python tools/canvas.py >/dev/null 2>&1 && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -q && apt-get install -q -y --no-install-recommends chromium fonts-noto-cjk; fi
	@$(BIN)/python tools/canvas.py

lint: install ## check the code's style and safety
	$(BIN)/ruff check

bench-training: install ## measure training: caching, batches, memory; on a GPU also the published sizes
	$(BIN)/python tools/bench_training.py

bench-refvie: install ## measure RefVIE's pipeline: samples a second by stage, overhead, memory
	$(BIN)/python tools/bench_refvie.py

bench: install ## time the model's parts against their yardsticks
	$(BIN)/python tools/bench.py

workflows: browser ## draw workflows/*.json, the blueprint, and all pictures of them and of the help pages
	$(BIN)/python tools/draw.py

locales: install ## write the English locale from the nodes
	$(BIN)/python tools/locales.py

train-nano: install ## train the small model from nothing, into output/nano; stopped, it goes on
	$(BIN)/python -m training.nano train --output output/nano

bench-nano: install ## measure the small model that train-nano has made
	$(BIN)/python -m training.nano bench --model output/nano/kiwi-edit-nano --output output/nano/bench

ablate-nano: install ## the paper's ablations in small, on the parts that train-nano has made
	$(BIN)/python -m training.nano ablate --output output/nano

clean: ## remove all that these commands have made
	rm -rf .venv .cache output build *.egg-info .pytest_cache .ruff_cache
