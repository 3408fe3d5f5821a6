"""What a hardened command says of itself."""

from plinius.trust import harden


def require_measures_told(said: str) -> None:
    """Each measure of the kernel is in force or told to be missing; nothing else is."""
    (line,) = (line for line in said.splitlines() if line.startswith("Hardened: "))
    in_force = set(line.removeprefix("Hardened: ").removesuffix(".").split(", "))
    here = {one.name for one in harden.examine() if one.missing is None}
    assert in_force - {"keys in memfd_secret"} == here - {"keys in memfd_secret"}, said
    for one in harden.examine()[:5]:
        assert (f"NOT in force: {one.name}" in said) == (one.missing is not None), said
