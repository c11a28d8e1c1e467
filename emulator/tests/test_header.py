"""Reading cuda.h, and what is generated from it."""

import re
from pathlib import Path

import pytest

from cuda_emulator import BuildError
from cuda_emulator.compiler import find_c_compiler
from cuda_emulator.generate import generate
from cuda_emulator.header import Header, find_header, read_header

CUDA_H = """
#define CUDA_VERSION 13020
#define CUDAAPI
#ifdef __CUDA_API_VERSION_INTERNAL
    #define PTSZ(api) api ## _ptsz
#else
    #define PTSZ(api) api
    #define cuThing cuThing_v2
#endif
#define cuLater PTSZ(cuLater)
typedef enum cudaError_enum { CUDA_SUCCESS = 0, /* not CUDA_ERROR_FAKE = 3 */
    CUDA_ERROR_OUT_OF_MEMORY = 2 } CUresult;
/* CUresult CUDAAPI cuComment(void); */
CUresult CUDAAPI cuThing_v2(const void *
        pointer, int values[4]);   // CUresult cuAlsoComment(int x);
CUresult CUDAAPI cuLater(void);
static inline CUresult cuInline(int x) { return x ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY; }
#if defined(__CUDA_API_VERSION_INTERNAL)
    #undef cuLater
    CUresult CUDAAPI cuThing(unsigned int x);
    CUresult CUDAAPI cuLater(void);
#endif
"""
TYPEDEFS_H = """
typedef CUresult (CUDAAPI *PFN_cuThing_v11000)(const void *pointer, int values[4]);
typedef CUresult (CUDAAPI *PFN_cuThing_v2000)(unsigned int x);
typedef CUresult (CUDAAPI *PFN_cuLater_v4000)(void);
typedef CUresult (CUDAAPI *PFN_cuLater_v7000_ptsz)(void);
"""


def written(folder: Path, cuda_h: str = CUDA_H, typedefs: str = TYPEDEFS_H) -> Path:
    include = folder / "include"
    include.mkdir(parents=True)
    (include / "cuda.h").write_text(cuda_h)
    (include / "cudaTypedefs.h").write_text(typedefs)
    return include


@pytest.fixture
def small(tmp_path: Path) -> Header:
    return read_header(written(tmp_path), find_c_compiler())


def test_branches_comments_macros_and_broken_lines_are_understood(small: Header) -> None:
    assert small.version == 13020
    assert {function.symbol for function in small.functions} == {"cuThing", "cuThing_v2", "cuLater", "cuLater_ptsz"}
    assert small.errors == ("CUDA_SUCCESS", "CUDA_ERROR_OUT_OF_MEMORY")
    newest = next(function for function in small.functions if function.symbol == "cuThing_v2")
    assert [(p.type, p.name, p.suffix) for p in newest.parameters] == [
        ("const void *", "pointer", ""),
        ("int", "values", "[4]"),
    ]


def test_the_nth_version_is_the_nth_symbol(small: Header) -> None:
    assert {(v.name, v.version, v.symbol) for v in small.versions} == {
        ("cuThing", 2000, "cuThing"),
        ("cuThing", 11000, "cuThing_v2"),
        ("cuLater", 4000, "cuLater"),
        ("cuLater", 7000, "cuLater_ptsz"),
    }


def test_both_forms_of_a_call_have_one_implementation(small: Header) -> None:
    code = generate(small)["calls.c"]
    assert code.count("CUresult emulated_cuLater(") == 1
    assert code.count("emulated_cuLater();") == 2
    assert "call_begin(CALL_cuLater_ptsz, true)" in code
    assert "call_begin(CALL_cuLater, false)" in code
    assert '{"cuLater", 4000, CU_GET_PROC_ADDRESS_LEGACY_STREAM, (void *)cuLater}' in code
    assert '{"cuLater", 7000, CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM, (void *)cuLater_ptsz}' in code
    assert '{"cuThing", 2000, CU_GET_PROC_ADDRESS_DEFAULT, (void *)cuThing}' in code
    assert '{CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"}' in code


def test_the_real_header_is_read_whole() -> None:
    folder = find_header()
    header = read_header(folder, find_c_compiler())
    symbols = {function.symbol for function in header.functions}
    # Counted in another way: every name that is declared, and every name that a macro gives to a declared one.
    text = re.sub(r"/\*.*?\*/", " ", (folder / "cuda.h").read_text(), flags=re.DOTALL)
    named = set(re.findall(r"CUresult\s+CUDAAPI\s+(cu[A-Z]\w*)\s*\(", text))
    assert named <= symbols
    renamed = set(re.findall(r"#\s*define\s+cu\w+\s+(?:\w+\()?(cu\w+)", text))
    assert {re.sub(r"_pt[ds][sz]$", "", symbol) for symbol in symbols} <= named | renamed
    assert len(header.versions) == len(symbols)
    newest = {v.name: v.symbol for v in sorted(header.versions, key=lambda v: v.version) if "_pt" not in v.symbol}
    assert (newest["cuMemAlloc"], newest["cuCtxCreate"], newest["cuMemcpyHtoD"]) == (
        "cuMemAlloc_v2",
        "cuCtxCreate_v4",
        "cuMemcpyHtoD_v2",
    )
    assert len(header.errors) > 90


def test_a_text_that_is_no_cuda_header_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="declares no driver functions"):
        read_header(written(tmp_path, "#define CUDA_VERSION 13000\n", ""), find_c_compiler())


def test_versions_that_do_not_fit_the_symbols_are_refused(tmp_path: Path) -> None:
    odd = TYPEDEFS_H + "typedef CUresult (CUDAAPI *PFN_cuThing_v12000)(unsigned int x);\n"
    with pytest.raises(BuildError, match="cuThing has 2 symbols and 3 versions"):
        read_header(written(tmp_path, typedefs=odd), find_c_compiler())


def test_the_toolkit_that_cuda_home_names_comes_first(tmp_path: Path) -> None:
    include = written(tmp_path)
    assert find_header({"CUDA_HOME": str(tmp_path)}) == include
    assert find_header({"CUDA_PATH": str(tmp_path)}) == include


def test_without_a_new_enough_header_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = written(tmp_path, CUDA_H.replace("13020", "12040"))
    monkeypatch.setattr("cuda_emulator.header._candidates", lambda environ: iter([old, tmp_path / "nothing"]))
    with pytest.raises(
        BuildError, match=r"(?s)pip install nvidia-cuda-runtime.*include: CUDA 12.4.*nothing: no cuda.h"
    ):
        find_header()
