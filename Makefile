# One word per command; what a command does is in .ci/run and pyproject.toml.
.PHONY: setup test lint format types docs bench cudnn ci

setup:
	pip install -e '.[demo,dev,test]'

test:
	pytest

lint:
	ruff check .

format:
	ruff format .

types:
	mypy

docs:
	mkdocs build --strict

bench:
	python -m benchmarks

cudnn:
	tools/cudnn-tests

ci:
	.ci/run
