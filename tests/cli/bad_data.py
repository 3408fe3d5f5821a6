"""Bad input: keys, sources of data, sealed datasets."""

import struct

import numpy as np
from PIL import Image

from cli.place import (
    GIVE_ITS_KEY,
    Place,
    case,
)
from cli.world import (
    CLASSES,
    call,
)

# Keys


@case
def wrong_key_for_the_region(p: Place) -> tuple[list[object], str]:
    """Both ids are shown, neither key is."""
    key = p.world.other_key
    return p.train(key=key), (
        f"The dataset in {p.region} was sealed with key {p.id_of(p.world.key)}, but this is key "
        f"{p.id_of(key)}. {GIVE_ITS_KEY}"
    )


@case
def wrong_key_for_the_dataset(p: Place) -> tuple[list[object], str]:
    """A dataset of another owner starts no run, and no region is made for it."""
    key = p.world.other_key
    return p.train(key=key, region=p.folder / "new.region"), (
        f"train.sealed was sealed with key {p.id_of(p.world.key)}, but this is key "
        f"{p.id_of(key)}. {GIVE_ITS_KEY}"
    )


@case
def wrong_key_for_the_digest(p: Place) -> tuple[list[object], str]:
    """Reading takes the right key as well."""
    key = p.world.other_key
    return p.read("digest", key=key), (
        f"The mirror in {p.region} was sealed with key {p.id_of(p.world.key)}, but this is key "
        f"{p.id_of(key)}. {GIVE_ITS_KEY}"
    )


@case
def wrong_key_for_verify(p: Place) -> tuple[list[object], str]:
    """And so does proving."""
    key = p.world.other_key
    return ["region", "verify", p.region, "--key", key], (
        f"The mirror in {p.region} was sealed with key {p.id_of(p.world.key)}, but this is key "
        f"{p.id_of(key)}. {GIVE_ITS_KEY}"
    )


@case
def key_others_can_read(p: Place) -> tuple[list[object], str]:
    """Loose permissions are refused before the key is used."""
    key = p.file("loose.key", p.world.key.read_bytes())
    key.chmod(0o640)
    return p.train(key=key), (
        f"Others can read the key file {key} (mode 0640). Run chmod 600 {key}, and make a new key "
        "if others may have read it."
    )


@case
def key_missing(p: Place) -> tuple[list[object], str]:
    """No key file."""
    return p.read("digest", key=p.folder / "no.key"), (
        f"Cannot read {p.folder / 'no.key'}: No such file or directory. "
        "Name a key file made by plinius keygen."
    )


@case
def key_is_something_else(p: Place) -> tuple[list[object], str]:
    """Another file in place of a key; what is in it is not shown."""
    key = p.file("note.txt", "plinius-owner-key-1 beef\n")
    key.chmod(0o600)
    return p.train(key=key), (
        f"{key} holds no owner's key. Name a key file made by plinius keygen."
    )


@case
def key_would_be_overwritten(p: Place) -> tuple[list[object], str]:
    """keygen never overwrites."""
    key = p.file("owner.key", p.world.key.read_bytes())
    return ["keygen", "-o", key], (
        f"{key} exists already, and overwriting a key would lose all data sealed with it. "
        "Choose another name with -o."
    )


@case
def key_in_no_folder(p: Place) -> tuple[list[object], str]:
    """keygen into a folder that is not there."""
    key = p.folder / "no" / "owner.key"
    return ["keygen", "-o", key], (
        f"Cannot write {key}: No such file or directory. Free some space or choose another folder."
    )


# Sources of data


@case
def counts_differ(p: Place) -> tuple[list[object], str]:
    """Images and labels of different counts."""
    images, labels = p.idx("images", 10), p.idx("labels", 9)
    return p.seal("--images", images, "--labels", labels), (
        f"{images} holds 10 samples, but {labels} 9 labels. Give files that belong together."
    )


@case
def image_of_another_size(p: Place) -> tuple[list[object], str]:
    """One image in a folder differs: nothing half-sealed is left."""
    (p.folder / "pictures" / "a").mkdir(parents=True)
    for name, side in (("1.png", 8), ("2.png", 9)):
        Image.new("L", (side, 8)).save(p.folder / "pictures" / "a" / name)
    return p.seal("--folder", p.folder / "pictures"), (
        f"{p.folder}/pictures/a/2.png has 9 x 8 pixels in greyscale, but the first image 8 x 8 "
        "pixels in greyscale. Bring all images to one size and mode."
    )


@case
def picture_that_is_none(p: Place) -> tuple[list[object], str]:
    """A file that only bears the name of a picture."""
    (p.folder / "pictures" / "a").mkdir(parents=True)
    Image.new("L", (8, 8)).save(p.folder / "pictures" / "a" / "1.png")
    p.file("pictures/a/2.txt", "hello")
    return p.seal("--folder", p.folder / "pictures"), (
        f"{p.folder}/pictures/a/2.txt is neither PNG nor JPEG. Convert it or move it away."
    )


@case
def folder_without_classes(p: Place) -> tuple[list[object], str]:
    """Pictures that lie in no class folder."""
    (p.folder / "pictures").mkdir()
    Image.new("L", (8, 8)).save(p.folder / "pictures" / "1.png")
    return p.seal("--folder", p.folder / "pictures"), (
        f"{p.folder}/pictures is not a folder of class folders. Put the images of each class into "
        "a folder named after it, and nothing else."
    )


@case
def idx_truncated(p: Place) -> tuple[list[object], str]:
    """An IDX file shorter than it declares."""
    images = p.idx("images", 10)
    images.write_bytes(images.read_bytes()[:-1])
    return p.seal("--images", images, "--labels", p.idx("labels", 10)), (
        f"{images} is truncated: its header declares 656 bytes, but the file has 655. "
        "Fetch it again."
    )


@case
def idx_foreign(p: Place) -> tuple[list[object], str]:
    """Another kind of file in place of IDX."""
    images = p.file("images", b"\x89PNG\r\n\x1a\n" + bytes(100))
    return p.seal("--images", images, "--labels", p.idx("labels", 10)), (
        f"{images} is not an IDX file. Check that it is the right file."
    )


@case
def npz_without_x(p: Place) -> tuple[list[object], str]:
    """An archive without the array of samples."""
    np.savez(p.folder / "d.npz", images=np.zeros((2, 2)))
    return p.seal("--npz", p.folder / "d.npz"), (
        f"{p.folder}/d.npz has no array named x. Save it with numpy.savez(path, x=, y=)."
    )


@case
def npz_of_objects(p: Place) -> tuple[list[object], str]:
    """An array that only a pickle could give is not read."""
    np.savez(p.folder / "d.npz", x=np.array([{}, {}], object))
    return p.seal("--npz", p.folder / "d.npz"), (
        f"Array x of {p.folder}/d.npz is not an array of plain numbers. "
        "Check that it is the right file."
    )


@case
def label_beyond_the_classes(p: Place) -> tuple[list[object], str]:
    """A label that is no class is found while sealing; nothing half-sealed is left."""
    labels = p.idx("labels", 10)
    labels.write_bytes(labels.read_bytes()[:-1] + b"\x09")
    return p.seal("--images", p.idx("images", 10), "--labels", labels, "--classes", CLASSES), (
        f"The label of record 9 of {p.folder}/images is 9, but there are 4 classes. "
        "Number the classes from 0, or correct the number of classes."
    )


@case
def samples_and_labels_swapped(p: Place) -> tuple[list[object], str]:
    """The labels given as the images."""
    images, labels = p.idx("images", 10), p.idx("labels", 10)
    return p.seal("--images", labels, "--labels", images), (
        f"{labels} holds single numbers, and {images} arrays of 2 dimensions: samples and labels "
        "look swapped. Exchange them."
    )


@case
def number_that_is_none(p: Place) -> tuple[list[object], str]:
    """NaN is found while sealing; nothing half-sealed is left."""
    np.savez(p.folder / "d.npz", x=np.array([[1.0, 2], [3, np.nan]]))
    return p.seal("--npz", p.folder / "d.npz"), (
        f"The sample of record 1 of Array x of {p.folder}/d.npz holds nan at place 1. "
        "Only finite numbers can be trained on: replace it, or leave the record out."
    )


@case
def empty_cell(p: Place) -> tuple[list[object], str]:
    """A table with an empty cell in a column of numbers."""
    csv = p.file("t.csv", "age,ill\n3,0\n,1\n")
    return p.seal("--csv", csv, "--target", "ill"), (
        f"Column age of {csv} is empty in row 2. Fill it in, leave the rows out, or --drop age."
    )


@case
def target_that_is_not_there(p: Place) -> tuple[list[object], str]:
    """A column that the table does not have."""
    csv = p.file("t.csv", "age,ill\n3,0\n")
    return p.seal("--csv", csv, "--target", "sick"), (
        f"{csv} has no column sick. It has age, ill: name one of these."
    )


@case
def split_of_too_much(p: Place) -> tuple[list[object], str]:
    """Fractions whose sum is not 1."""
    how = ["--images", p.idx("images", 10), "--labels", p.idx("labels", 10), "--split", "0.8,0.3"]
    return p.seal(*how), (
        "0.8,0.3 is no split. Give two fractions (train,test) or three (train,validation,test) "
        "whose sum is 1."
    )


@case
def sealed_would_be_overwritten(p: Place) -> tuple[list[object], str]:
    """seal never overwrites."""
    out = p.file("out.sealed", p.world.data.read_bytes())
    return p.seal("--images", p.idx("images", 10), "--labels", p.idx("labels", 10)), (
        f"{out} exists already. Choose another name, or remove it first."
    )


@case
def original_with_the_wrong_key(p: Place) -> tuple[list[object], str]:
    """The original's format under another key: the record is named, nothing is left."""
    labels = p.file("labels.bin", struct.pack("<I", 2) + bytes(2 * (28 + 40)))
    how = ["--format", "plinius", "--legacy-key", "00" * 16, "--labels", labels]
    return p.seal(*how), (
        f"Label 0 of {labels} does not open with this key. It was altered, is in the wrong place, "
        "or was sealed with another key; fetch it again from its owner."
    )


# Sealed datasets


@case
def dataset_missing(p: Place) -> tuple[list[object], str]:
    """A new run without its dataset makes no region."""
    return p.train(data=p.folder / "no.sealed", region=p.folder / "new.region"), (
        f"Cannot read {p.folder}/no.sealed: No such file or directory. "
        "Check the path and its permissions."
    )


@case
def dataset_truncated(p: Place) -> tuple[list[object], str]:
    """A sealed dataset cut short makes no region."""
    whole = p.world.data.read_bytes()
    data = p.file("cut.sealed", whole[:-1])
    return p.train(data=data, region=p.folder / "new.region"), (
        f"cut.sealed has {len(whole) - 1} bytes, but its header declares {len(whole)}: it was "
        "truncated. Fetch it again from its owner."
    )


@case
def dataset_cut_in_its_header(p: Place) -> tuple[list[object], str]:
    """A sealed dataset of a few bytes."""
    data = p.file("cut.sealed", p.world.data.read_bytes()[:40])
    return ["inspect", data], (
        f"{data} is truncated: it ends within the header. Fetch it again from its owner."
    )


@case
def dataset_foreign(p: Place) -> tuple[list[object], str]:
    """Plain data in place of a sealed dataset."""
    return p.train(data=p.world.images, region=p.folder / "new.region"), (
        "images.idx is not a sealed dataset. Make one with plinius seal."
    )


@case
def dataset_of_the_future(p: Place) -> tuple[list[object], str]:
    """A sealed dataset of a later version."""
    raw = bytearray(p.world.data.read_bytes())
    raw[8:12] = struct.pack("<I", 2)
    data = p.file("next.sealed", bytes(raw))
    return p.train(data=data, region=p.folder / "new.region"), (
        "next.sealed is a sealed dataset of version 2, and this program reads version 1. "
        "Use the release of plinius that made it."
    )


@case
def dataset_header_altered(p: Place) -> tuple[list[object], str]:
    """One bit of the class count: only the key shows that it was changed."""
    raw = bytearray(p.world.data.read_bytes())
    raw[80] ^= 1
    data = p.file("bent.sealed", bytes(raw))
    assert call("inspect", data, "--json").json["classes"] == CLASSES ^ 1
    return p.train(data=data, region=p.folder / "new.region"), (
        "The header of bent.sealed does not open with this key. It was altered, is in the wrong "
        "place, or was sealed with another key; fetch it again from its owner."
    )


@case
def inspected_file_foreign(p: Place) -> tuple[list[object], str]:
    """inspect on a file that is none of ours."""
    return ["inspect", p.world.cfg], (
        f"{p.world.cfg} is neither a sealed dataset nor a region. "
        "Name a file made by plinius seal or plinius train."
    )


@case
def inspected_file_missing(p: Place) -> tuple[list[object], str]:
    """inspect on nothing."""
    return ["inspect", p.folder / "none"], (
        f"Cannot read {p.folder}/none: No such file or directory. "
        "Check the path and its permissions."
    )
