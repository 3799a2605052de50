"""Builds the C extensions and lays out the package.

What is declared, not computed, stands in pyproject.toml. The environment decides three things:
GREENLETIO_WERROR=1 makes warnings errors; GREENLETIO_SANITIZE=1 builds under AddressSanitizer and
UndefinedBehaviorSanitizer (`make asan` knows how such a build must be run); PG_CONFIG names the
pg_config of the libpq to build with, which is then found there when it runs, too. What has to be
on the machine is looked for when the extensions are built: an sdist is made without.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).resolve().parent

CFLAGS = ["-std=c11", "-fvisibility=hidden", "-fno-plt"]
if "-O" not in os.environ.get("CFLAGS", ""):  # not what somebody debugs with
    CFLAGS.append("-O2")
CFLAGS += ["-Wall", "-Wextra", "-Wshadow", "-Wno-unused-parameter"]  # slots have fixed signatures
LDFLAGS = []
PG_CONFIG = os.environ.get("PG_CONFIG")
if os.environ.get("GREENLETIO_WERROR") == "1":
    CFLAGS.append("-Werror")
if os.environ.get("GREENLETIO_SANITIZE") == "1":
    # asan-stack=0: a greenlet switch copies stack slices, red zones and all.
    CFLAGS += ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    CFLAGS += ["--param=asan-stack=0", "-fno-omit-frame-pointer", "-O1"]
    LDFLAGS.append("-fsanitize=address,undefined")


def fail(problem, way_out):
    sys.exit(f"greenletio cannot be built: {problem}. {way_out}")


def greenlet_include():
    """The folder that holds greenlet/greenlet.h."""
    spec = importlib.util.find_spec("greenlet")
    if spec is None or spec.origin is None:
        fail("greenlet is not installed", "Run: pip install greenlet")
    header = Path(spec.origin).with_name("greenlet.h")
    if not header.is_file():
        fail(f"{header} is missing", "Run: pip install --force-reinstall greenlet")
    return str(header.parent.parent)


def ask(*command):
    """The first line a tool prints; empty if the tool is missing or fails."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return answer.strip()


def pkg_config_includes(library):
    return [flag[2:] for flag in ask("pkg-config", "--cflags-only-I", library).split()]


def pkg_config_libraries(library):
    return [flag[2:] for flag in ask("pkg-config", "--libs-only-L", library).split()]


def find_header(header, folders):
    """The first of the folders, or of the usual ones, that holds a header; None if none does."""
    for folder in [*folders, "/usr/include", "/usr/local/include"]:
        if folder and Path(folder, header).is_file():
            return folder
    return None


def libpq_include():
    """The folder that holds libpq-fe.h; None if there is none."""
    if PG_CONFIG is not None:
        folder = ask(PG_CONFIG, "--includedir")
        if not Path(folder, "libpq-fe.h").is_file():
            fail(f"PG_CONFIG={PG_CONFIG} leads to no libpq-fe.h", "Name another, or unset it")
        return folder
    folders = [
        ask("pg_config", "--includedir"),
        *pkg_config_includes("libpq"),
        "/usr/include/postgresql",
    ]
    return find_header("libpq-fe.h", folders)


def libpq_library():
    """The folder that holds libpq itself, as a list; empty if the linker looks there anyway."""
    if PG_CONFIG is not None:
        return [ask(PG_CONFIG, "--libdir")]
    folders = [ask("pg_config", "--libdir")]
    folders += pkg_config_libraries("libpq")
    return [folder for folder in folders if folder and glob(f"{folder}/libpq.*")]


def look_around(compiler):
    """Where libevent's and libpq's headers are. All that is missing is told of at once."""
    if not sys.platform.startswith("linux"):
        fail("its waits are built on Linux's epoll and timerfd", "Use it on Linux, so far")
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        fail("greenlets need the GIL", "Use a build of Python that has it")
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    headers = sysconfig.get_path("include")
    libevent = find_header("event2/event.h", pkg_config_includes("libevent_core"))
    libpq = libpq_include()
    needs = [  # what it is, whether it is there, and what has it on Debian and on Fedora
        (f"a C compiler ({compiler})", shutil.which(compiler), "gcc libc6-dev", "gcc"),
        (
            f"Python.h in {headers}",
            Path(headers, "Python.h").is_file(),
            f"{python}-dev",
            f"{python}-devel",
        ),
        ("event2/event.h of libevent", libevent, "libevent-dev", "libevent-devel"),
        ("libpq-fe.h of libpq", libpq, "libpq-dev", "libpq-devel"),
    ]
    missing = [need for need in needs if not need[1]]
    if missing:
        whats, _, debian, fedora = zip(*missing, strict=True)
        fail(
            f"missing: {', '.join(whats)}",
            f"Debian/Ubuntu: apt-get install {' '.join(debian)}; "
            f"Fedora: dnf install {' '.join(fedora)}",
        )
    return libevent, libpq


def extension(name, *folders, sources=(), libraries=()):
    return Extension(
        name,
        sorted(file for folder in folders for file in glob(f"csrc/{folder}/*.c")) + [*sources],
        include_dirs=["csrc"],
        depends=[*glob("csrc/*/*.h"), "setup.py"],
        extra_compile_args=CFLAGS,
        extra_link_args=LDFLAGS,
        libraries=[*libraries],
    )


# The psycopg2 patch uses the libpq that psycopg2 has loaded: it is not linked.
CORE = extension("greenletio._core", "core", "loop", "sync", libraries=["event_core"])
PQ = extension("greenletio._pq", "pq")
PG = extension("greenletio._pg", "pg", sources=["csrc/pq/request.c"], libraries=["pq"])


class BuildExt(build_ext):
    """Compiles the files of an extension side by side, and makes a checkout importable in place."""

    def build_extensions(self):
        libevent, libpq = look_around(self.compiler.compiler_so[0])
        CORE.include_dirs += [greenlet_include(), libevent]
        CORE.library_dirs += pkg_config_libraries("libevent_core")
        PQ.include_dirs.append(libpq)
        PG.include_dirs.append(libpq)
        PG.library_dirs += libpq_library()
        if PG_CONFIG is not None:
            PG.runtime_library_dirs += libpq_library()
        compile_in_turn = self.compiler.compile

        def compile_at_once(sources, *args, **kwargs):
            # Objects come back in the order of the sources.
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                jobs = [pool.submit(compile_in_turn, [file], *args, **kwargs) for file in sources]
                return [obj for job in jobs for obj in job.result()]

        self.compiler.compile = compile_at_once
        super().build_extensions()

    def run(self):
        super().run()
        if self.editable_mode:
            # Run from the root of the checkout, Python takes the folder greenletio/ there for the
            # package, before the installed one: so it has to be whole, too.
            self.copy_extensions_to_source()
            for name in ("green", "pg"):
                link = HERE / "greenletio" / name
                if not link.exists():
                    link.unlink(missing_ok=True)
                    link.symlink_to(Path("..", name))


class BdistWheel(bdist_wheel):
    """Lays the licences of the libraries that will be put into a wheel beside our own."""

    def egg2dist(self, egginfo_path, distinfo_path):
        super().egg2dist(egginfo_path, distinfo_path)
        if PG_CONFIG is not None:  # scripts/wheel-libraries.sh makes the folder
            folder = Path(ask(PG_CONFIG, "--bindir")).with_name("licenses")
            for licence in folder.glob("*.txt"):
                shutil.copy(licence, Path(distinfo_path, "licenses"))


SUBPACKAGES = {"greenletio.green": "green", "greenletio.pg": "pg"}


def packages():
    found = set(find_packages(include=["greenletio", "greenletio.*"]))
    for name, folder in SUBPACKAGES.items():
        found.add(name)
        found.update(f"{name}.{sub}" for sub in find_packages(folder))
    return sorted(found)


options = {}
if os.environ.get("GREENLETIO_SANITIZE") == "1":
    # The usual build must not find these objects and take them for its own.
    shutil.rmtree("build/asan", ignore_errors=True)
    options["build"] = {"build_base": "build/asan"}
elif PG_CONFIG is not None:
    # Objects that are of another libpq look just as new.
    options["build"] = {"build_base": "build/libpq"}
    options["build_ext"] = {"force": True}

setup(
    options=options,
    packages=packages(),
    package_dir={"greenletio": "greenletio", **SUBPACKAGES},
    package_data={"": ["*.pyi", "py.typed"]},
    ext_modules=[CORE, PQ, PG],
    cmdclass={"bdist_wheel": BdistWheel, "build_ext": BuildExt},
)
