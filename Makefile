# Two commands matter: `make run` and `make test`. `make help` lists the rest.

PYTHON ?= python3
CARGO ?= cargo
# Cargo's own default is one job per core; JOBS=1 helps a machine with little memory.
JOBS ?=
cargo_jobs := $(if $(JOBS),-j $(JOBS))
# More flags for the server that `make run` starts, such as ARGS="--grpc-port 9001".
ARGS ?=
# What `make simulate` simulates, such as REQUESTS=1000000000.
REQUESTS ?= 10000000
# More flags for pytest, such as PYTEST_ARGS="-k stream".
PYTEST_ARGS ?=
# More flags for the comparison, such as COMPARE_ARGS="--seconds 1 --trial closed identity".
COMPARE_ARGS ?=

minilm := model_repository/minilm/1/model.pt

.DEFAULT_GOAL := help
.PHONY: help run test check simulate clients remote operator image bench compare soak chaos fuzz setup clean distclean

help: ## say what there is
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 20

run: setup-run ## build the server and serve model_repository/
	@# Only the example that the server names when it is ready needs the clients, so the server starts without them, too.
	-@$(PYTHON) scripts/setup-clients
	$(CARGO) build --release $(cargo_jobs)
	@scripts/prepare-minilm target/release/nereid
	@echo "when it is ready, try: .venv/bin/python examples/embed.py"
	@exec target/release/nereid serve --model-repository model_repository $(ARGS)

test: check simulate clients remote operator ## all that CI checks

check: setup-run ## format, lints, house rules, unit and integration tests
	@$(PYTHON) scripts/setup-onnxruntime
	@# The Python that builds the package which tests serve.
	@$(PYTHON) scripts/setup-aoti
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets $(cargo_jobs) -- -D warnings
	$(CARGO) test $(cargo_jobs)
	@# Every order of threads through the hand-over of requests; other locks, so a build of its own.
	$(CARGO) test --features shuttle --lib $(cargo_jobs) handover

simulate: setup-run ## ten million requests through the schedulers, under faults
	@# This crate alone is compiled once more, optimised, beside the dependencies of the other tests.
	$(CARGO) test --config profile.dev.opt-level=1 --test sim $(cargo_jobs) -- --requests $(REQUESTS)

clients: setup-run ## Triton's own clients, new and old, against the server, and the embeddings against numpy
	@$(PYTHON) scripts/setup-clients --old
	@# Not `cargo build`: without the features that tests turn on it would compile most dependencies a second time.
	$(CARGO) test --no-run --test tidy $(cargo_jobs)
	@scripts/prepare-minilm target/debug/nereid
	@# Both at the same time: most of it is waiting.
	@status=0; old=; if [ -x .venv-2.50/bin/python ]; then \
		.venv-2.50/bin/python -m pytest tests/clients -q $(PYTEST_ARGS) > target/clients-2.50.log 2>&1 & old=$$!; \
	fi; \
	.venv/bin/python -m pytest tests/clients -q $(PYTEST_ARGS) || status=$$?; \
	if [ -n "$$old" ]; then wait $$old || status=$$?; echo "with the old client:"; cat target/clients-2.50.log; fi; \
	exit $$status

remote: setup-run ## model repositories in an object store, against a real server that speaks S3
	@$(PYTHON) scripts/setup-clients
	@$(PYTHON) scripts/setup-remote
	$(CARGO) test --no-run --test tidy $(cargo_jobs)
	.venv/bin/python -m pytest tests/remote -q $(PYTEST_ARGS)

operator: ## the console in a browser, the container files, the dashboard
	@$(PYTHON) scripts/setup-libtorch
	@$(PYTHON) scripts/setup-operator
	$(CARGO) test --no-run --test tidy $(cargo_jobs)
	third_party/operator/bin/python -m pytest tests/operator -q $(PYTEST_ARGS)

image: ## the Dockerfile's steps without a container engine, and what the image would weigh; needs root and debootstrap
	rm -rf target/image
	scripts/image target/image --target example

bench: setup-run ## CPU and latency per request, by perf_analyzer
	@$(PYTHON) scripts/setup-perf-analyzer
	$(CARGO) build --release $(cargo_jobs)
	@scripts/prepare-minilm target/release/nereid
	@$(PYTHON) scripts/bench

compare: setup-run ## ratios to a real Triton on the same models, and a plot, into bench-results/
	@$(PYTHON) scripts/setup-perf-analyzer
	@$(PYTHON) scripts/setup-triton
	@# Two builds: what the example needs beside the server would change the server, too.
	$(CARGO) build --release $(cargo_jobs)
	$(CARGO) build --release --example load $(cargo_jobs)
	@scripts/prepare-minilm target/release/nereid
	@$(PYTHON) benches/compare/run $(COMPARE_ARGS)

soak: setup-run ## everything at once for ten minutes, then a thousand loads and unloads
	@$(PYTHON) scripts/setup-clients
	$(CARGO) test --no-run --test tidy $(cargo_jobs)
	$(CARGO) build --example load $(cargo_jobs)
	.venv/bin/python scripts/soak
	.venv/bin/python scripts/soak cycles

chaos: setup-run ## a server that is ended at any moment, for five minutes
	@$(PYTHON) scripts/setup-clients
	$(CARGO) test --no-run --test tidy $(cargo_jobs)
	.venv/bin/python scripts/chaos
	.venv/bin/python scripts/chaos killer

fuzz: setup-run ## the fuzz targets, ten minutes each
	JOBS=$(JOBS) scripts/fuzz http_binary 600
	JOBS=$(JOBS) scripts/fuzz http_json 600
	JOBS=$(JOBS) scripts/fuzz pbtxt 600
	JOBS=$(JOBS) scripts/fuzz tensor_decode 600

setup: setup-run ## download everything that the other targets need
	@$(PYTHON) scripts/setup-onnxruntime
	@$(PYTHON) scripts/setup-aoti
	@$(PYTHON) scripts/setup-clients
	@$(PYTHON) scripts/setup-remote
	@$(PYTHON) scripts/setup-operator
	@$(PYTHON) scripts/setup-perf-analyzer
	@$(PYTHON) scripts/setup-triton

# libtorch and the weights of the example model; a stamp makes the second time free.
.PHONY: setup-run
setup-run:
	@$(PYTHON) scripts/setup-libtorch
	@$(PYTHON) scripts/setup-minilm

clean: ## remove what was built
	$(CARGO) clean
	rm -rf $(minilm) bench-results

distclean: clean ## remove what was downloaded, too
	rm -rf third_party .venv .venv-2.50
