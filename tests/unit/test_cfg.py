"""The cfg reader: Darknet's syntax, located warnings and refusals, bounds."""

import hashlib
import re
from pathlib import Path

import pytest
import torch

from plinius.darknet.activations import ACTIVATIONS
from plinius.darknet.cfg import MAX_BYTES, MAX_SECTIONS, MAX_WARNINGS, parse_cfg, read_cfg
from plinius.darknet.cfg_keys import ALIASES, LAYER_KEYS, REFUSED
from plinius.darknet.network import Network
from plinius.errors import CfgError, StorageError

NET = "[net]\nbatch=4\nheight=8\nwidth=8\nchannels=2\n"
SMALL = NET + "[convolutional]\nfilters=3\nsize=3\npad=1\nactivation=leaky\n[softmax]\n"


def refused(text: str) -> str:
    """The message with which reading, building, or training `text` is refused."""
    with pytest.raises(CfgError) as caught:
        Network(parse_cfg(text, "a.cfg")).require_trainable()
    return str(caught.value)


def test_a_plain_file_reads_into_typed_fields() -> None:
    """Sections keep their order, keys their types, absent keys the original's defaults."""
    cfg = parse_cfg(SMALL, "a.cfg")
    assert [section.kind for section in cfg.sections] == ["convolutional", "softmax"]
    assert (cfg.net.batch, cfg.net.inputs, cfg.net.sub_batch) == (4, 128, 4)
    assert (cfg.net.learning_rate, cfg.net.momentum, cfg.net.decay) == (0.001, 0.9, 0.0001)
    assert (cfg.net.policy, cfg.net.power, cfg.net.max_batches) == ("constant", 4, 0)
    assert cfg.sections[0].integer("filters") == 3
    assert cfg.sections[0].integer("stride") == 1
    assert cfg.warnings == ()


def test_blanks_inside_lines_count_nowhere() -> None:
    """`max_ batches\t= 5 00` is max_batches=500, as in the original, and so with CRLF ends."""
    text = SMALL.replace("batch=4", " b atch\t= 1 2\r").replace("[soft", " [ so ft")
    assert parse_cfg(text, "a.cfg").net.batch == 12


def test_comments_are_skipped() -> None:
    """Lines that begin with # or ; say nothing."""
    assert parse_cfg("# one\n ; two\n" + SMALL, "a.cfg").warnings == ()


def test_the_first_value_of_a_key_counts() -> None:
    """A repeat is ignored as in the original, with a warning that names both lines."""
    cfg = parse_cfg(SMALL.replace("width=8", "width=8\nbatch=9"), "a.cfg")
    assert cfg.net.batch == 4
    assert cfg.warnings == ("a.cfg:5: [net] 'batch' again; the value of line 2 counts",)


def test_aliases_mean_their_sections() -> None:
    """[network], [conv], [max], [avg], [conn] and [soft] are the long names."""
    text = NET.replace("[net]", "[network]") + "[conv]\n[max]\n[avg]\n[conn]\n[soft]\n"
    kinds = [section.kind for section in parse_cfg(text, "a.cfg").sections]
    assert kinds == ["convolutional", "maxpool", "avgpool", "connected", "softmax"]


def test_an_unknown_key_is_a_located_warning() -> None:
    """The warning names file, line, section and key, and offers the likely key."""
    cfg = parse_cfg(SMALL.replace("filters=3", "filter=3"), "a.cfg")
    assert cfg.warnings == (
        "a.cfg:7: [convolutional] unknown key 'filter' is ignored (did you mean filters?)",
    )


def test_options_without_effect_are_told() -> None:
    """Options that do nothing on the CPU are warned of where they ask for something; each once."""
    text = SMALL.replace("batch=4", "batch=4\nadam=1\nclip=0\nnotruth=1")
    text = text.replace("pad=1", "pad=1\nbinary=1")
    text = text.replace("notruth=1", "notruth=1\nrandom=0\nmosaic=0.0\nmixup=1")
    text += "[crop]\nshift=1\nangle=0\n[crop]\nshift=2\n"
    assert parse_cfg(text, "a.cfg").warnings == (
        "a.cfg:3: [net] adam has no effect, as on the original's CPU",
        "a.cfg:16: [convolutional] binary has no effect, as on the original's CPU",
        "a.cfg:5: [net] notruth, mixup have no effect here",
        "a.cfg:20: [crop] shift has no effect here",
    )


def test_unknown_words_fall_back_and_are_told() -> None:
    """Unknown cost type and policy mean sse and constant, as in the original."""
    text = NET + "policy=poli\n[connected]\n[cost]\ntype=l2\n"
    cfg = parse_cfg(text, "a.cfg")
    assert cfg.net.policy == "constant"
    warnings = Network(cfg).warnings
    assert [warning.split(":")[1] for warning in warnings] == ["6", "9"]
    assert "means sse" in warnings[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a.cfg does not begin with [net]"),
        ("batch=1\n", "a.cfg:1: a key before any section"),
        (NET, "a.cfg has no layers"),
        ("[conv]\n" + NET, "does not begin with [net]"),
        (SMALL + NET, "a.cfg:12: [net] appears a second time"),
        (
            NET + "[silence]\n",
            "a.cfg:6: section [silence] is not supported. Supported: [net], ",
        ),
        (NET + "[conv]\nactivation=reluu\n", "[convolutional] unknown activation 'reluu'. Known: "),
        (NET + "[conv]\n[route]\n", "a.cfg:7: [route] layers is missing"),
        (NET + "[conv]\n[route]\nlayers=1\n", "a.cfg:8: [route] layers=1 is no earlier layer"),
        (NET + "[conv]\n[route]\nlayers=-2\n", "layers=-2 is no earlier layer. Give -1 to -1"),
        (NET + "[conv]\n[route]\nlayers=-1.5\n", "layers=-1.5 is no earlier layer"),
        (NET + "[conv]\n[conv]\nstride_x=2\n[shortcut]\nfrom=0\n", "cannot be added to one of"),
        (NET + "[upsample]\nstride=0\n[cost]\n", "[upsample] stride=0"),
        (NET + "[upsample]\nstride=-3\n[cost]\n", "the stride does not divide evenly"),
        (NET + "[reorg]\nstride=2\n[cost]\n", "Make the channels a multiple of 4"),
        (NET + "[crop]\ncrop_height=9\n[cost]\n", "larger than the image of 8 x 8"),
        (NET + "[crnn]\nsize=2\n", "[crnn] the state would change its size"),
        (NET + "[max]\nmaxpool_depth=1\nout_channels=3\n", "out_channels=3 is too many"),
        (NET + "[yolo]\nclasses=3\n", "[yolo] has 2 channels before it, not 1 anchors"),
        (NET + "[region]\nclasses=3\n", "[region] has 2 channels before it, not 1 anchors"),
        (NET + "[detection]\n", "[detection] has 128 values before it, not 147"),
        (NET + "[iseg]\n", "[iseg] has 2 channels before it, not 20 classes + 32 ids"),
        (NET + "[local]\nsize=5\npad=1\n[cost]\n", "pad=1 does not go with size=5"),
        (NET + "[conv]\nshare_index=2\n", "[convolutional] share_index is not supported"),
        (NET + "[convolutionl]\n", "a.cfg:6: '[convolutionl]' is not a section"),
        (NET + "[softmax\n", "a.cfg:6: '[softmax' is not a section"),
        (NET + "[softmax]\ngroups\n", "a.cfg:7: 'groups' is not key=value"),
        (NET + "[softmax]\n=1\n", "a.cfg:7: '=1' is not key=value"),
        (SMALL.replace("batch=4", "batch=4x"), "[net] batch='4x'. batch needs an integer"),
        (SMALL.replace("batch=4", "batch=0"), "from 1 to 1048576"),
        (SMALL.replace("batch=4", "batch="), "a.cfg:2: [net] batch=''"),
        (SMALL.replace("batch=4", "batch=1_0"), "a.cfg:2: [net] batch='1_0'"),
        (SMALL.replace("batch=4", "batch=" + "9" * 5000), "batch='9999"),
        (SMALL.replace("batch=4", "decay=nan"), "a.cfg:2: [net] decay='nan'. decay needs a number"),
        (SMALL.replace("batch=4", "decay=1e999"), "a.cfg:2: [net] decay='1e999'"),
        (SMALL.replace("batch=4", "subdivisions=3"), "does not divide evenly"),
        (
            SMALL.replace("batch=4", "policy=poly"),
            "policy=poly needs the number of updates",
        ),
        (SMALL.replace("batch=4", "policy=steps"), "steps and scales differ in length"),
        (SMALL.replace("batch=4", "steps=1,x"), "a.cfg:2: [net] steps='1,x'"),
        (SMALL.replace("batch=4", "inputs=7"), "a.cfg:2: [net] inputs is not height*width*channel"),
        (SMALL.replace("height=8", "height=0"), "an input of 0 values"),
        (SMALL.replace("pad=1", "pad=2"), "a.cfg:9: [convolutional] pad='2'. pad must be 0 or 1."),
        (
            SMALL.replace("size=3\npad=1", "size=30"),
            "a.cfg:6: [convolutional] the output would be (3, 0",
        ),
        (SMALL.replace("pad=1", "groups=2"), "a.cfg:9: [convolutional] the groups do not divide"),
        (SMALL.replace("[softmax]", "[softmax]\ngroups=5"), "[softmax] the groups do not divide"),
        ("[net]\ninputs=4\n[conv]\n", "a.cfg:3: [convolutional] needs an image before it"),
        (NET + "[maxpool]\nsize=2\npadding=9\n", "[maxpool] a window lies outside the image"),
        ("[net]\ninputs=4\n[cost]\n", "a.cfg:3: [cost] nothing to compare"),
        (NET + "[softmax]\n[connected]\noutput=3\n", "compares 128 values with a truth of 3"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_place(text: str, message: str) -> None:
    """Each refusal names file and line where there is one, what it found and what to do."""
    assert message in refused(text)


def test_no_cfg_takes_huge_memory() -> None:
    """Parameters, outputs and passes are bounded before any memory is taken."""
    wide = "[net]\ninputs=1048576\n[connected]\noutput=1048576\n[cost]\n"
    assert "describes 1099512676352 parameters" in refused(wide)
    huge = "[net]\nheight=1048576\nwidth=1048576\nchannels=1048576\n[avgpool]\n"
    assert "an input of 1152921504606846976 values" in refused(huge)
    filters = SMALL.replace("filters=3", "filters=1048576").replace("=8", "=64")
    assert "the output would be" in refused(filters)
    batch = SMALL.replace("batch=4", "batch=1048576").replace("filters=3", "filters=99")
    assert "too many values in one pass" in refused(batch)


def test_long_files_are_refused() -> None:
    """Bytes, sections and warnings are bounded."""
    assert "is larger than" in refused("#" * (MAX_BYTES + 1))
    assert "more than 1000 sections" in refused(NET + "[dropout]\n" * MAX_SECTIONS)
    assert "more than 50000 lines" in refused("\n" * 50_001)


def test_warnings_are_summed_up() -> None:
    """After 200 warnings one more says how many there are."""
    noise = "".join(f"k{i}=1\n" for i in range(MAX_WARNINGS + 2))
    warnings = parse_cfg(SMALL.replace("[soft", noise + "[soft"), "a.cfg").warnings
    assert len(warnings) == MAX_WARNINGS + 1
    assert warnings[-1] == "a.cfg: 2 more warnings are not shown"


def test_values_end_at_a_comment() -> None:
    """`pad=1 # same` is 1, as C reads it; lists may end with a comma."""
    text = SMALL.replace("pad=1", "pad=1 # same").replace("=leaky", "=leaky#x")
    cfg = parse_cfg(text.replace("batch=4", "steps=1,2, # x"), "a.cfg")
    assert cfg.sections[0].integer("pad") == 1
    assert cfg.sections[0].text("activation") == "leaky"
    assert cfg.net.steps == (1, 2)
    assert cfg.warnings == ()


def test_trees_are_read_beside_the_cfg(tmp_path: Path) -> None:
    """A tree counts for the digest; what is none is refused; without its file it is not built."""
    path, tree = tmp_path / "net.cfg", tmp_path / "a.tree"
    path.write_text("[net]\ninputs=4\n[softmax]\ntree=a.tree\n")
    assert "tree='a.tree' was not read" in refused(path.read_text())
    with pytest.raises(StorageError, match="Cannot read"):
        read_cfg(path)
    digests = set()
    for last in ("-1", "0"):
        tree.write_text(f"a -1\nb -1\nc 0\nd {last}\n")
        cfg = read_cfg(path)
        digests.add(cfg.sha256)
    assert len(digests) == 2
    assert cfg.trees["a.tree"].group_sizes == (2, 2)
    y = Network(cfg)(torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
    assert y.tolist() == [[0.5, 0.5, 0.5, 0.5]]
    for wrong in ("a 0\n", "a -2\n", "a x\n", "a 9999999999\n", "", "a -1\nb 1\n"):
        tree.write_text(wrong)
        with pytest.raises(CfgError):
            read_cfg(path)


def test_files_are_read_with_their_digest(tmp_path: Path) -> None:
    """The digest is that of the bytes; messages name the path; foreign files are refused."""
    path = tmp_path / "net.cfg"
    path.write_text(SMALL)
    cfg = read_cfg(path)
    assert cfg.sha256 == hashlib.sha256(SMALL.encode()).hexdigest()
    assert cfg.name == str(path)
    with pytest.raises(StorageError, match="^Cannot read .*: No such file or directory"):
        read_cfg(tmp_path / "absent.cfg")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CfgError, match="is not text"):
        read_cfg(path)
    path.write_bytes("é".encode() * MAX_BYTES)
    with pytest.raises(StorageError, match="^Cannot read .*: File too large"):
        read_cfg(path)


def test_the_page_names_what_the_reader_takes() -> None:
    """docs/darknet.md has every section, alias, activation, and key that is refused."""
    page = (Path(__file__).parents[2] / "docs" / "darknet.md").read_text()
    for kind in LAYER_KEYS:
        assert f"`[{kind}]`" in page
    words = set(re.findall(r"[A-Za-z_0-9]+", page))
    assert set(ALIASES) | set(ACTIVATIONS) | set(REFUSED) <= words


def test_maps_are_read_beside_the_cfg(tmp_path: Path) -> None:
    """The truth's classes become those of the network; what names no class of it is refused."""
    (tmp_path / "cfg").mkdir()
    (tmp_path / "data").mkdir()
    path, file = tmp_path / "cfg" / "net.cfg", tmp_path / "data" / "a.map"
    text = "[net]\nbatch=1\nheight=2\nwidth=2\nchannels=8\n[region]\nclasses=3\nmap=data/a.map\n"
    path.write_text(text)
    assert "map='data/a.map' was not read" in refused(text)
    file.write_text("2\n0\n")
    network = Network(read_cfg(path))
    x = torch.zeros(1, 8, 2, 2, requires_grad=True)
    truth = torch.zeros(1, 150)
    truth[0, :5] = torch.tensor([0.3, 0.3, 0.5, 0.5, 0])
    network.loss(x, truth)[0].backward()
    assert x.grad is not None
    assert [-1 if g < 0 else 1 for g in x.grad[0, 5:, 0, 0]] == [1, 1, -1]
    for wrong in ("3\n", "-1\n", "x\n", ""):
        file.write_text(wrong)
        with pytest.raises(CfgError):
            Network(read_cfg(path))


@pytest.mark.parametrize("before", ["", "# a key\n", "[net]\n"])
def test_a_key_file_given_by_mistake_is_not_shown(before: str) -> None:
    """Its line would else stand in the refusal, and so in a log."""
    secret = "0123456789abcdef" * 4
    with pytest.raises(CfgError) as refused:
        parse_cfg(f"{before}plinius-owner-key-1 {secret}\n", "owner.key")
    assert secret[:8] not in str(refused.value)
