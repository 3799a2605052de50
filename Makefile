PYTHON ?= python3

.PHONY: build
build: .venv/bin/python
	.venv/bin/pip install -q 'setuptools>=77' 'greenlet>=3.1'
	.venv/bin/pip install -q -e . --config-settings editable_mode=strict --no-build-isolation

.venv/bin/python:
	$(PYTHON) -m venv .venv
