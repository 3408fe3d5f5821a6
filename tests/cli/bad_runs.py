"""Bad input: networks, regions, and runs that are not the region's."""

import struct

from cli.place import GIVE_ITS_RUN, Place, case, does_not_open, flip_newest, sha
from cli.world import (
    CFG,
    ITERATIONS,
    RECORDS,
    call,
)
from plinius.darknet.cfg_keys import LAYER_KEYS
from plinius.pm.region import Region

# Networks

KINDS = ", ".join(f"[{kind}]" for kind in ("net", *LAYER_KEYS))


@case
def cfg_missing(p: Place) -> tuple[list[object], str]:
    """No cfg."""
    return p.train(cfg=p.folder / "no.cfg"), (
        f"Cannot read {p.folder}/no.cfg: No such file or directory. "
        "Check the path and its permissions."
    )


@case
def cfg_of_another_input(p: Place) -> tuple[list[object], str]:
    """A network whose input the samples do not fill makes no region."""
    cfg = p.cfg(("height=8", "height=9"))
    return p.train(cfg=cfg, region=p.folder / "new.region"), (
        "The samples of train.sealed are 1 x 8 x 8, but the network's input is 1 x 9 x 8. "
        "Correct height, width and channels (or inputs) in [net], or name another dataset."
    )


@case
def cfg_of_fewer_outputs(p: Place) -> tuple[list[object], str]:
    """A network with fewer outputs than the data has classes makes no region."""
    cfg = p.cfg(("filters=4", "filters=3"))
    return p.train(cfg=cfg, region=p.folder / "new.region"), (
        "The labels of train.sealed have 4 classes, but the network's output has 3. "
        "Give the network's last layer as many outputs as there are classes."
    )


@case
def cfg_with_an_unknown_section(p: Place) -> tuple[list[object], str]:
    """The place and the sections known."""
    cfg = p.cfg(more="\n[transformer]\nheads=8\n")
    return p.train(cfg=cfg, region=p.folder / "new.region"), (
        f"{cfg}:{len(CFG.splitlines()) + 2}: '[transformer]' is not a section. Supported: {KINDS}."
    )


@case
def cfg_with_a_bad_value(p: Place) -> tuple[list[object], str]:
    """The place, the value and the rule."""
    cfg = p.cfg(("probability=.3", "probability=1.3"))
    line = CFG.splitlines().index("probability=.3") + 1
    return p.train(cfg=cfg, region=p.folder / "new.region"), (
        f"{cfg}:{line}: [dropout] probability='1.3'. probability needs a number from 0 to 0.999."
    )


@case
def cfg_error_on_line_100(p: Place) -> tuple[list[object], str]:
    """A console that shows :100: as an emoji must not do so with a line number."""
    cfg = p.file("long.cfg", CFG + "#\n" * (99 - len(CFG.splitlines())) + "[transformer]\n")
    return p.train(cfg=cfg, region=p.folder / "new.region"), (
        f"{cfg}:100: '[transformer]' is not a section. Supported: {KINDS}."
    )


@case
def cfg_without_an_end(p: Place) -> tuple[list[object], str]:
    """No max_batches and no --iterations: refused before a region is made."""
    cfg = p.cfg(("policy=poly", "policy=constant"), ("max_batches=24", ""))
    return p.train(cfg=cfg, region=p.folder / "new.region"), (
        f"{cfg} has no max_batches, so training would never end. "
        "Say how far to train with --iterations."
    )


# Regions


@case
def region_missing(p: Place) -> tuple[list[object], str]:
    """Nothing to read from."""
    region = p.folder / "no.region"
    return p.read("digest", region=region), (
        f"There is no region {region}. Name a region made by plinius train."
    )


@case
def region_in_no_folder(p: Place) -> tuple[list[object], str]:
    """Nowhere to make a region."""
    region = p.folder / "no" / "new.region"
    return p.train(region=region), (
        f"There is no folder {region.parent} for a region. "
        "Make it, or name another file (--region)."
    )


@case
def region_is_a_folder(p: Place) -> tuple[list[object], str]:
    """A folder in place of a region."""
    region = p.folder / "folder"
    region.mkdir()
    return p.train(region=region), (
        f"Cannot use {region} as a region: Is a directory. "
        "Name a file in a folder that you can write to (--region)."
    )


@case
def region_foreign(p: Place) -> tuple[list[object], str]:
    """Another file in place of a region is not written to."""
    region = p.file("precious.tar", b"precious" * 1000)
    return p.train(region=region), (
        f"{region} is not a Plinius region. Name a region, or a file that is not there yet."
    )


@case
def region_empty(p: Place) -> tuple[list[object], str]:
    """An empty file is no region."""
    region = p.file("empty", b"")
    return p.train(region=region), (
        f"{region} is not a Plinius region. Name a region, or a file that is not there yet."
    )


@case
def region_of_the_future(p: Place) -> tuple[list[object], str]:
    """A region of a later version is not written to."""
    raw = bytearray(p.region.read_bytes())
    raw[8:12] = struct.pack("<I", 2)
    p.region.write_bytes(raw)
    return p.train(), (
        f"{p.region} is a region of version 2, and this program reads version 1. "
        "Use the release of plinius that made it."
    )


@case
def mirror_of_the_future(p: Place) -> tuple[list[object], str]:
    """A mirror of a later version in a region of this one."""
    raw = bytearray(p.region.read_bytes())
    at = raw.index(b"PLNSMIRR")
    raw[at + 8 : at + 12] = struct.pack("<I", 4)
    p.region.write_bytes(raw)
    return p.train(), (
        f"The mirror in {p.region} is of version 4, and this program reads version 3. "
        "Use the release of plinius that made it."
    )


@case
def region_truncated(p: Place) -> tuple[list[object], str]:
    """A region cut short by a page."""
    size = p.region.stat().st_size
    with p.region.open("r+b") as file:
        file.truncate(size - 4096)
    return p.train(), (
        f"{p.region} is cut short: {size - 4096:,} of {size:,} bytes. "
        "Restore a whole copy of it, or start a new region."
    )


@case
def region_cut_in_its_twins(p: Place) -> tuple[list[object], str]:
    """A region cut short within its directory."""
    with p.region.open("r+b") as file:
        file.truncate(8192)
    return p.read("digest"), (
        f"The header of {p.region} is damaged, or the file is cut short. "
        "Restore a whole copy of it, or start a new region."
    )


@case
def region_without_a_run(p: Place) -> tuple[list[object], str]:
    """A region that no run was mirrored to yet."""
    Region.create(p.folder / "new.region", 0).close()
    return p.read("digest", region=p.folder / "new.region"), (
        f"{p.folder}/new.region holds no mirrored run. Train one first: plinius train."
    )


# Another run than the region's


@case
def iterations_below_the_mirrored(p: Place) -> tuple[list[object], str]:
    """A run does not go back."""
    return p.train("--iterations", ITERATIONS - 1), (
        f"The run is at iteration {ITERATIONS} already, beyond iteration {ITERATIONS - 1}. "
        "Ask for at least as many, or name another region (--region)."
    )


@case
def cfg_changed(p: Place) -> tuple[list[object], str]:
    """Each key that differs is named; poly computes with max_batches."""
    cfg = p.cfg(("momentum=0.9", "momentum=0.8"), ("max_batches=24", "max_batches=48"))
    return p.train(cfg=cfg), (
        f"{cfg} is not the network of the run in the region: [net] max_batches is 48 but was "
        f"24; [net] momentum is 0.8 but was its default. {GIVE_ITS_RUN}"
    )


@case
def seed_and_precision_changed(p: Place) -> tuple[list[object], str]:
    """Everything that differs is listed at once."""
    return p.train("--seed", 7, "--precision", "bf16"), (
        "This is not the run in the region: precision is bf16 but was fp32; seed is 7 but was 0. "
        f"{GIVE_ITS_RUN}"
    )


@case
def dataset_changed(p: Place) -> tuple[list[object], str]:
    """Another dataset of the same owner and shapes."""
    old, new = (call("inspect", d, "--json").json["id"] for d in (p.world.data, p.world.held_out))
    return p.train(data=p.world.held_out), (
        f"{p.world.held_out} is dataset {new}, but {p.region} holds dataset {old}. "
        "Give the dataset this run began with (--data), or another region (--region)."
    )


@case
def dataset_of_another_id(p: Place) -> tuple[list[object], str]:
    """The id that was named counts, whatever the file and the region hold."""
    held = call("inspect", p.world.data, "--json").json["id"]
    return p.train("--dataset-id", "00" * 16), (
        f"the dataset in {p.region} is dataset {held}, not dataset {'00' * 16}. "
        "Give the data and the region of that dataset, or leave out --dataset-id."
    )


@case
def new_run_on_a_dataset_of_another_id(p: Place) -> tuple[list[object], str]:
    """Refused before there is a region."""
    held = call("inspect", p.world.data, "--json").json["id"]
    return p.train("--dataset-id", "00" * 16, region=p.folder / "new.region"), (
        f"train.sealed is dataset {held}, not dataset {'00' * 16}. "
        "Give the data and the region of that dataset, or leave out --dataset-id."
    )


@case
def run_of_another_id(p: Place) -> tuple[list[object], str]:
    """A region that was exchanged for one of another run of the same owner."""
    held = call("region", "info", p.region, "--json").json["mirror"]["run_id"]
    return p.train("--run-id", "00" * 16), (
        f"{p.region} holds run {held}, not run {'00' * 16}. "
        "Name the region of that run, or leave out its id."
    )


@case
def run_id_without_a_region(p: Place) -> tuple[list[object], str]:
    """A run that is named is not begun anew where its region is missing."""
    region = p.folder / "new.region"
    return p.train("--run-id", "00" * 16, region=region), (
        f"There is no region {region}, so it does not hold run {'00' * 16}. "
        "Name the region of that run, or leave out --run-id."
    )


@case
def another_network_tested(p: Place) -> tuple[list[object], str]:
    """test takes the cfg of the run."""
    cfg = p.cfg(("filters=6", "filters=5"))
    return p.read("test", cfg, "--data", p.world.held_out), (
        f"{cfg} is not the network of the run in the region: layer 0 [convolutional] filters "
        f"is 5 but was 6. {GIVE_ITS_RUN}"
    )


@case
def another_network_exported(p: Place) -> tuple[list[object], str]:
    """So does export, which leaves nothing."""
    cfg = p.cfg(("filters=6", "filters=5"))
    return p.read("export", cfg, "-o", p.folder / "net.weights"), (
        f"{cfg} is not the network of the run in the region: layer 0 [convolutional] filters "
        f"is 5 but was 6. {GIVE_ITS_RUN}"
    )


@case
def export_would_overwrite_safetensors(p: Place) -> tuple[list[object], str]:
    """export never overwrites."""
    out = p.file("net.safetensors", b"precious")
    return p.read("export", p.world.cfg, "-o", out), (
        f"{out} exists already. Choose another name, or remove it first."
    )


@case
def export_would_overwrite_weights(p: Place) -> tuple[list[object], str]:
    """In neither format."""
    out = p.file("net.weights", b"precious")
    return p.read("export", p.world.cfg, "-o", out), (
        f"{out} exists already. Choose another name, or remove it first."
    )


@case
def export_of_a_part_that_is_not_there(p: Place) -> tuple[list[object], str]:
    """The parts that are there are named."""
    return p.read("export", "-o", p.folder / "net.safetensors", "--part", "net"), (
        "The mirrored state has no tensors in net. Name one of its parts (--part): dropout, model, "
        "optimizer, validation."
    )


@case
def weights_that_are_no_safetensors(p: Place) -> tuple[list[object], str]:
    """A foreign file to begin with."""
    weights = p.file("net.safetensors", b"foreign")
    return p.train("--weights", weights, region=p.folder / "new.region"), (
        f"{weights} is not a .safetensors file. Name one, as written by plinius export."
    )


@case
def weights_given_to_a_run_that_began_without(p: Place) -> tuple[list[object], str]:
    """They belong to what a run is."""
    call(*p.read("export", "-o", p.folder / "own.safetensors"))
    weights = p.folder / "own.safetensors"
    return p.train("--weights", weights), (
        f"This is not the run in the region: weights is {sha(weights)}… but was unknown. "
        f"{GIVE_ITS_RUN}"
    )


@case
def tensorboard_in_a_file(p: Place) -> tuple[list[object], str]:
    """A folder is needed."""
    board = p.file("board", b"")
    return p.train("--tensorboard", board), (
        f"Cannot write metrics to {board}: Not a directory. "
        "Name a folder that you can write to (--tensorboard)."
    )


@case
def metrics_in_no_folder(p: Place) -> tuple[list[object], str]:
    """Metrics that cannot be written stop nothing half-way."""
    metrics = p.folder / "no" / "m.jsonl"
    return p.train("--metrics", metrics), (
        f"Cannot write metrics to {metrics}: No such file or directory. "
        "Name a file in a folder that you can write to (--metrics)."
    )


@case
def commit_that_does_not_open(p: Place) -> tuple[list[object], str]:
    """A flipped bit in the newest commit is refused by name, not passed over."""
    flip_newest(p.region)
    return p.train(), does_not_open(p.region)


@case
def commit_that_does_not_open_to_readers(p: Place) -> tuple[list[object], str]:
    """Nor does the digest fall back to the commit before."""
    flip_newest(p.region)
    return p.read("digest"), does_not_open(p.region)


@case
def commit_that_does_not_verify(p: Place) -> tuple[list[object], str]:
    """Nor is it called good."""
    flip_newest(p.region)
    return ["region", "verify", p.region, "--key", p.world.key], does_not_open(p.region)


@case
def record_that_does_not_open(p: Place) -> tuple[list[object], str]:
    """A flipped bit in the last record of the dataset extent is found by verify."""
    with Region.open(p.region) as region:
        span = region.extent("dataset")
        assert span is not None
        at = span.end - 1
        region.medium.store(at, bytes([region.medium.read(at, 1)[0] ^ 1]))
        region.medium.flush(at, 1)
        region.medium.fence()
    return ["region", "verify", p.region, "--key", p.world.key], (
        f"1 of {RECORDS} records of the dataset in {p.region} do not open with this key: "
        f"{RECORDS - 1}. They were altered or the disk is failing: fetch the file again from its "
        "owner."
    )
