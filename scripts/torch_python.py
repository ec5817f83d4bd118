"""A torch for Python that computes by our own libtorch and needs nothing of CUDA.

PyPI has no torch for CPUs, and what the other one wants of CUDA weighs 4 GB. So its Python half is put over the libraries
of third_party/libtorch, and empty libraries stand in for CUDA's, which nothing calls without a device.
"""

import re
import subprocess

import wheels

LIBTORCH = wheels.THIRD_PARTY / "libtorch"
# What `ldd -r` says about a symbol that no library has; Python's own are found in the program that loads the library.
UNDEFINED = re.compile(r"undefined symbol: (?!_?Py)(\w+)(, version libcudnn)?")


def add_libtorch(folder, copy):
    """Puts our libtorch below torch, by `copy(source, target)`."""
    for source in LIBTORCH.glob("*/**/*.so*"):
        target = folder / source.relative_to(LIBTORCH)
        target.parent.mkdir(parents=True, exist_ok=True)
        copy(source, target)


def stand_in_for_cuda(folder):
    """Makes the libraries that libtorch_python.so wants and that only a device needs; their functions return 0."""
    for name in ("libtorch_cuda.so", "libcudnn.so.9", "libcufile.so.0"):
        assemble(folder / name, "")
    found = subprocess.run(["ldd", "-r", folder / "libtorch_python.so"], capture_output=True, text=True, check=False)
    symbols = sorted(set(UNDEFINED.findall(found.stdout + found.stderr)))
    assemble(folder / "libtorch_cuda.so", "".join(definition(symbol) for symbol, versioned in symbols if not versioned))
    versioned = "".join(definition(symbol) for symbol, versioned in symbols if versioned)
    assemble(folder / "libcudnn.so.9", versioned, version="libcudnn.so.9")


def definition(symbol):
    """Assembler for one symbol."""
    if symbol.startswith("_ZTI"):
        # The type of a class without bases: pybind11 reads its name.
        value = f".quad _ZTVN10__cxxabiv117__class_type_infoE + 16, 1f\n1: .asciz \"{symbol[4:]}\"\n.balign 8"
        return f".data\n.balign 8\n.globl {symbol}\n{symbol}: {value}\n"
    if symbol.startswith("_ZTV"):
        return f".data\n.balign 8\n.globl {symbol}\n{symbol}: .fill 64, 8\n"
    # The one function that is called all the same says where a pointer is to be stored.
    result = ".lcomm pointer, 8\nleaq pointer(%rip), %rax" if "get_gil_checker" in symbol else "xorl %eax, %eax"
    return f".text\n.globl {symbol}\n{symbol}: {result}\nret\n"


def assemble(library, text, version=None):
    """Makes a shared library of assembler text; every symbol has `version`, if there is one."""
    command = ["cc", "-shared", "-nostdlib", "-x", "assembler", "-", "-o", library, f"-Wl,-soname,{library.name}"]
    if version:
        versions = library.with_suffix(".versions")
        versions.write_text(f"{version} {{ *; }};\n")
        command.append(f"-Wl,--version-script={versions}")
    text += '.section .note.GNU-stack,"",@progbits\n'
    made = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        wheels.fail(f"cc could not make {library.name}: {made.stderr.strip()}")
