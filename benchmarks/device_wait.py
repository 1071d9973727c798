"""Simulated accelerator step: an XLA call that sleeps in C++ for a fixed wall time, independent of CPU load.

A step that computes on the host slows down under load, and one that sleeps in Python contends for the interpreter lock, so
neither shows the loop overhead on an accelerator.  Requires a C++ compiler, `c++` or `$CXX`.
"""

import ctypes
import os
import pathlib
import subprocess
import tempfile

import jax
from jaxtyping import Array, Float

from motionaura_jax.core.errors import UserError

_TARGET = "benchmark_device_wait"
_SOURCE = """
#include <chrono>
#include <thread>
#include "xla/ffi/api/ffi.h"
namespace ffi = xla::ffi;
static ffi::Error Wait(double seconds, ffi::Buffer<ffi::F32> in, ffi::ResultBuffer<ffi::F32> out) {
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
  *out->typed_data() = *in.typed_data();
  return ffi::Error::Success();
}
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    Handler, Wait, ffi::Ffi::Bind().Attr<double>("seconds").Arg<ffi::Buffer<ffi::F32>>().Ret<ffi::Buffer<ffi::F32>>());
"""


def register() -> None:
    """Compile the call and register it with XLA, once per process; raise UserError without a C++ compiler."""
    compiler = os.environ.get("CXX", "c++")
    with tempfile.TemporaryDirectory() as folder:
        source, library = pathlib.Path(folder, "wait.cc"), pathlib.Path(folder, "wait.so")
        source.write_text(_SOURCE)
        flags = ["-std=c++17", "-O1", "-shared", "-fPIC", f"-I{jax.ffi.include_dir()}"]
        try:
            subprocess.run([compiler, *flags, source, "-o", library], check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise UserError(
                f"{compiler}: {getattr(error, 'stderr', '') or error}; install a C++ compiler, or set CXX"
            ) from error
        handler = jax.ffi.pycapsule(ctypes.CDLL(library).Handler)
    jax.ffi.register_ffi_target(_TARGET, handler, platform="cpu")


def wait(x: Float[Array, ""], seconds: float) -> Float[Array, ""]:
    """Return x after `seconds`.

    XLA does not know about the sleep and runs a program that looks cheap in the caller's thread.  Add a matrix product to
    the program, and XLA runs it in a separate thread, as on a device.
    """
    return jax.ffi.ffi_call(_TARGET, jax.ShapeDtypeStruct(x.shape, x.dtype))(x, seconds=seconds)
