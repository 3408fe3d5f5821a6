"""The DAX guest: a Debian kernel under QEMU's TCG with an emulated NVDIMM and the host's files.

Nothing is installed and nothing is mounted on the host: the kernel package is unpacked below a
work folder, QEMU and virtiofsd are children that die with this process.
"""

import glob
import gzip
import os
import queue
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
PMEM_BYTES = 512 << 20
RAM = "2G"
_MODULES = ("virtio_pci", "virtiofs", "nfit", "nd_pmem")
_PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86",
    "virtiofsd": "qemu-system-common",
    "busybox": "busybox-static",
    "cpio": "cpio",
    "depmod": "kmod",
    "mke2fs": "e2fsprogs",
    "ndctl": "ndctl",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "setpriv": "util-linux",
}
_PATH = os.pathsep.join(["/usr/lib/qemu", "/usr/libexec", "/usr/sbin", "/sbin", os.defpath])


class SkippedError(Exception):
    """Why the guest cannot be had here."""


class GuestError(Exception):
    """The guest did not do what it should."""


def tools() -> dict[str, str]:
    """Where every tool is. Raises SkippedError with the command that installs what is absent."""
    path = os.pathsep.join([os.environ.get("PATH", ""), _PATH])
    found = {name: shutil.which(name, path=path) for name in _PACKAGES}
    absent = [name for name, where in found.items() if where is None]
    if absent:
        packages = " ".join(sorted({_PACKAGES[name] for name in absent}))
        raise SkippedError(
            f"{', '.join(absent)} not found; on Debian 12 as root: "
            f"apt-get install -y --no-install-recommends {packages}"
        )
    if os.uname().machine != "x86_64":
        raise SkippedError("the guest runs the host's Python, so the host must be x86_64")
    if os.geteuid() != 0:
        raise SkippedError("virtiofsd needs root: run it as root")
    return {name: where for name, where in found.items() if where}


def kernel(work: Path) -> Path:
    """Debian's cloud kernel and its modules, downloaded and unpacked once: the folder of them."""
    unpacked = work / "kernel"
    if unpacked.exists():
        return unpacked
    depends = _said("apt-cache", "depends", "linux-image-cloud-amd64").split()
    names = [word for word in depends if word.startswith("linux-image-") and word[12].isdigit()]
    fetched = work / "fetched"
    shutil.rmtree(fetched, ignore_errors=True)
    fetched.mkdir()
    if (
        not names
        or subprocess.run(
            ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", names[0]], cwd=fetched
        ).returncode
    ):
        raise SkippedError(
            "the kernel package cannot be downloaded; with a network, as root: apt-get update"
        )
    _said("dpkg-deb", "-x", next(fetched.glob("*.deb")), fetched)
    version = next((fetched / "lib/modules").iterdir()).name
    _said("depmod", "-b", fetched, version)
    fetched.rename(unpacked)
    return unpacked


def initramfs(kernel: Path, tool: dict[str, str], target: Path) -> None:
    """Write what the guest starts from: busybox, the modules, mke2fs, ndctl and init.sh."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for folder in ("bin", "sbin", "modules", "etc", "host"):
            (root / folder).mkdir()
        shutil.copy(tool["busybox"], root / "bin/busybox")
        shutil.copy(HERE / "init.sh", root / "init")
        (root / "init").chmod(0o755)
        shutil.copy("/etc/mke2fs.conf", root / "etc")
        shutil.copy(tool["mke2fs"], root / "sbin/mke2fs")
        shutil.copy(tool["ndctl"], root / "bin/ndctl")
        for library in _libraries(tool["mke2fs"]) | _libraries(tool["ndctl"]):
            (root / library[1:]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, root / library[1:])
        modules = _in_order(kernel)
        for module in modules:
            shutil.copy(module, root / "modules")
        (root / "modules/order").write_text("".join(f"{module.name}\n" for module in modules))
        names = "\n".join(str(path.relative_to(root)) for path in root.rglob("*"))
        packed = subprocess.run(
            [tool["cpio"], "--quiet", "-o", "-H", "newc"],
            cwd=root, input=names.encode(), stdout=subprocess.PIPE, check=True,
        ).stdout  # fmt: skip
    target.write_bytes(gzip.compress(packed, 1))


def _in_order(kernel: Path) -> list[Path]:
    """The files of the modules, each after those it depends on."""
    (base,) = (kernel / "lib/modules").iterdir()
    needs: dict[str, list[str]] = {}
    for line in (base / "modules.dep").read_text().splitlines():
        path, _, after = line.partition(":")
        needs[path] = after.split()
    order: list[str] = []

    def add(path: str) -> None:
        for needed in needs[path]:
            add(needed)
        if path not in order:
            order.append(path)

    for module in _MODULES:
        at = [path for path in needs if Path(path).name == f"{module}.ko"]
        if not at:
            raise SkippedError(f"the kernel package has no {module}.ko: Debian 12's has")
        add(at[0])
    return [base / path for path in order]


def _libraries(program: str) -> set[str]:
    """The shared libraries of a program, and its loader."""
    words = _said("ldd", program).split()
    return {word for word in words if word.startswith("/")}


def _said(*command: object) -> str:
    return subprocess.run(
        [str(word) for word in command], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


class Machine:
    """A guest that is running: its console line by line, and the end it is given."""

    def __init__(self, work: Path, tool: dict[str, str], options: dict[str, str]) -> None:
        if any(set(value) & {" ", '"'} for value in options.values()):
            raise SkippedError(
                "the kernel's command line takes no path with a space: move the clone"
            )
        self.began = time.monotonic()
        self._folder = tempfile.TemporaryDirectory(prefix="plinius-dax-")
        socket = Path(self._folder.name) / "virtiofs"
        self._log = (work / "console.log").open("a")
        self._processes: list[subprocess.Popen[bytes]] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        try:
            share = ["-o", "source=/", "-o", "cache=always", "-o", "sandbox=chroot"]
            self._start([tool["virtiofsd"], f"--socket-path={socket}", *share], tool)
            while not socket.exists():
                if self._processes[0].poll() is not None or self.seconds > 20:
                    raise GuestError("virtiofsd does not start: see console.log")
                time.sleep(0.02)
            self._start(_qemu(work, tool, socket, options), tool)
            self._reader.start()
        except BaseException:
            self.kill()
            raise

    def __enter__(self) -> "Machine":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.began

    def lines(self, timeout: float) -> Iterator[str]:
        """The console's lines until the guest is gone. Raises GuestError when it takes too long."""
        until = time.monotonic() + timeout
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                raise GuestError(f"the guest was not done in {timeout:.0f} s") from None
            if line is None:
                return
            yield line

    def kill(self) -> None:
        """SIGKILL to QEMU and to virtiofsd, if they still live; wait for both."""
        for process in reversed(self._processes):
            process.kill()
            process.wait()
        if self._reader.is_alive():
            self._reader.join()
        self._log.close()
        self._folder.cleanup()

    def _start(self, command: list[str], tool: dict[str, str]) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [tool["setpriv"], "--pdeathsig", "KILL", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if self._processes else self._log,
            stderr=self._log,
        )
        self._processes.append(process)
        return process

    def _read(self) -> None:
        output = self._processes[-1].stdout
        assert output is not None
        for raw in output:
            line = raw.decode(errors="replace").rstrip()
            print(line, file=self._log, flush=True)
            self._lines.put(line)
        self._lines.put(None)


# A loaded host is slow enough for the kernel to find its emulated timer broken, and to panic.
_KERNEL = "console=ttyS0 panic=-1 quiet mitigations=off no_timer_check"


def _qemu(work: Path, tool: dict[str, str], socket: Path, options: dict[str, str]) -> list[str]:
    (vmlinuz,) = glob.glob(str(work / "kernel/boot/vmlinuz-*"))
    arguments = " ".join(f"plinius.{name}={value}" for name, value in options.items())
    nvdimm = f"memory-backend-file,id=nv0,share=on,mem-path={work / 'pm.img'},size={PMEM_BYTES}"
    return [
        tool["qemu-system-x86_64"], "-accel", "tcg,tb-size=1024", "-cpu", "max", "-smp", "1",
        "-machine", "q35,nvdimm=on,nvdimm-persistence=mem-ctrl,memory-backend=ram0",
        "-m", f"{RAM},slots=2,maxmem=8G",
        "-object", f"memory-backend-memfd,id=ram0,size={RAM},share=on",
        "-object", f"{nvdimm},pmem=off",
        "-device", "nvdimm,id=nvdimm0,memdev=nv0",
        "-chardev", f"socket,id=c0,path={socket}",
        "-device", "vhost-user-fs-pci,queue-size=1024,chardev=c0,tag=hostroot",
        "-kernel", vmlinuz, "-initrd", str(work / "initramfs.gz"),
        "-append", f"{_KERNEL} {arguments}",
        "-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio", "-net", "none",
    ]  # fmt: skip
