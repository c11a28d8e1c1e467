"""Checks of the Python packages: is what an import takes what is installed, once, and does it import?"""

from __future__ import annotations

from collections.abc import Iterator

from tazza.doctor.facts import Facts
from tazza.doctor.findings import Finding, found
from tazza.doctor.versions import same_release

__all__ = ["CHECKS"]


def check_found(facts: Facts) -> Iterator[Finding]:
    """An import takes the installed files."""
    for package in facts.packages:
        name = package.distributions[0].partition(" ")[0] if package.distributions else package.module
        if package.missing:
            fix = f"pip install --force-reinstall {name}"
            yield found("package-missing", f"{package.distributions[0]} has no module {package.module}", fix)
        elif package.shadowed:
            seen = f"import {package.module} takes {package.path}, installed is {package.distributions[0]}"
            yield found("package-shadowed", f"{seen} in {package.folders[0]}", f"rename or remove {package.path}")


def check_once(facts: Facts) -> Iterator[Finding]:
    """One distribution for a module, in one folder."""
    for package in facts.packages:
        if len(package.distributions) > 1:
            pairs = zip(package.distributions, package.folders, strict=True)
            names = sorted({one.partition(" ")[0] for one in package.distributions})
            fix = f"pip uninstall {' '.join(names)} until none is left, then install one"
            yield found("package-twice", ", ".join(f"{one} in {folder}" for one, folder in pairs), fix)


def check_version(facts: Facts) -> Iterator[Finding]:
    """The files are of the version that the metadata state."""
    for package in facts.packages:
        imported = next((one for one in facts.imports if one.module == package.module), None)
        stated = (imported.version if imported else "") or package.file_version
        if package.version and not package.shadowed and not same_release(package.version, stated):
            seen = f"{package.module}: metadata say {package.version}, files say {stated}"
            name = package.distributions[0].partition(" ")[0]
            yield found("package-version", seen, f"pip install --force-reinstall {name}=={package.version}")


def check_requirements(facts: Facts) -> Iterator[Finding]:
    """Native packages are of the versions that the others were made for."""
    for package in facts.packages:
        for unmet in package.unmet:
            wanted = unmet.partition(" (")[0]
            seen = f"{package.distributions[0]} requires {unmet}"
            yield found("requirement-unmet", seen, f"pip install '{wanted}'")


def check_imports(facts: Facts) -> Iterator[Finding]:
    """What was imported came in."""
    for one in facts.imports:
        if one.state == "failed":
            yield found("import-failed", f"import {one.module}: {one.detail}", "reinstall it, or what the error names")
        elif one.state == "crashed":
            fix = f"python -X faulthandler -c 'import {one.module}' shows where; reinstall what it shows"
            yield found("import-crashed", f"import {one.module}: {one.detail}", fix)
        elif one.state == "hung":
            fix = f"python -X faulthandler -c 'import {one.module}' and Ctrl-\\ shows where; --timeout waits longer"
            yield found("import-hung", f"import {one.module}: {one.detail}", fix)


CHECKS = (check_found, check_once, check_version, check_requirements, check_imports)
