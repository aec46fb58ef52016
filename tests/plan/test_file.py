"""plan.json against a hostile world: every refusal is a PlanError of one sentence."""

import copy
import json
import os

import pytest

from sparse_vdit import Geometry, LayerPlan, Order, Pattern, SparsePlan
from sparse_vdit.plan import ModelIdentity, PlanError
from sparse_vdit.plan.file import MAX_BYTES, canonical, digest, parse, read_bytes
from sparse_vdit.plan.transformer import TransformerPlan

MODEL = ModelIdentity("CogVideoXTransformer3DModel", 2, 3, 64, (1, 2, 2))
GEOMETRY = Geometry(4, 6, 7, prefix=5, block_q=32, block_k=32)
PATTERNS = [
    Pattern.diagonal(half_width=31),
    Pattern.full(),
    Pattern.union(
        Pattern.multi_diagonal(half_width=9),
        Pattern.vertical_stripe(key_blocks=[0], order=Order.token_major()),
    ),
    Pattern.periodic_tiles(tile=(2, 2, 2), time=(1, 0, None), space=(2, 0, 3), sink_frames=1),
    Pattern.skip(),
]  # fmt: skip
CHOICE = [[[0, 1, 2], [3, 4, 0]], [[2, 2, 2], [0, 0, 1]]]
BETAS = [[[0.5, None, -1.25], [None, None, 3.0]], [[0.001, 0, None], [None, 2.5, None]]]


def make_plan():
    part = TransformerPlan(MODEL, GEOMETRY, PATTERNS, CHOICE, BETAS, (0, 0.4, 1), 0.9)
    return SparsePlan(part, {"seeds": [1, 2], "note": "held out", "error": 0.125})


def document():
    return json.loads(json.dumps(make_plan().to_json()))


def written(value):
    """Bytes of a document whose hash fits it."""
    value["sha256"] = digest(value)
    return canonical(value)


def read(data):
    return SparsePlan.from_json(parse(data))


def changed(change):
    value = document()
    change(value)
    return written(value)


def put(path, new):
    def change(value):
        for step in path[:-1]:
            value = value[step]
        if new is DELETE:
            del value[path[-1]]
        else:
            value[path[-1]] = new

    return change


DELETE = object()
TWIN = document()["transformers"]["transformer"]
T = ("transformers", "transformer")
BYTES = {
    "empty": (b"", "expected a JSON object"),
    "no JSON": (b"plan", "Expecting value at line 1 column 1"),
    "a list": (b"[]", "the file holds no object"),
    "cut off": (canonical(document())[:-20], "expected a JSON object"),
    "not UTF-8": (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
    "a BOM": (b"\xef\xbb\xbf{}", "BOM"),
    "deep lists": (b"[" * 100_000, "nested 100000 levels deep, expected at most 16"),
    "deep objects": (b'{"a":' * 50_000, "nested 50000 levels deep"),
    "brackets in a string are no depth": (b'{"a": "' + b"[" * 100 + b'"}', "format_version is None"),
    "escaped quotes": (b'{"a": "\\"' + b"[" * 100 + b'"}', "format_version is None"),
    "escaped backslash": (b'{"a": "\\\\", "b": ' + b"[" * 100 + b"}", "nested 101 levels deep"),
    "many values": (b"[" + b"1," * (5 * 2**20) + b"1]", "expected at most 4194304"),
    "twice the same key": (b'{"format_version": 1, "format_version": 1}', "'format_version' appears twice"),
    "NaN": (b'{"a": NaN}', "a number is NaN"),
    "Infinity": (b'{"a": -Infinity}', "a number is -Infinity"),
    "1e999": (b'{"a": 1e999}', "a number is 1e999, expected a finite one"),
    "a long integer": (b'{"a": ' + b"9" * 5000 + b"}", "has 5000 digits"),
    "too large": (b" " * (MAX_BYTES + 1), "expected at most 16777216"),
    "a control character": (b'{"a": "\x01"}', "Invalid control character"),
    "a comment": (b'{"a": 1} // yes', "Extra data"),
}


@pytest.mark.parametrize("name", BYTES)
def test_hostile_bytes_are_refused_in_a_sentence(name):
    data, sentence = BYTES[name]
    with pytest.raises(PlanError) as caught:
        read(data)
    assert sentence in str(caught.value)
    assert str(caught.value).startswith("plan")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


FIELDS = {
    "no version": (put(("format_version",), DELETE), "format_version is None, expected 1"),
    "a later version": (put(("format_version",), 2), "format_version is 2, expected 1"),
    "version true": (put(("format_version",), True), "format_version is True, expected 1"),
    "unknown field": (put(("surprise",), 1), "unknown field 'surprise'"),
    "missing field": (put(("orders",), DELETE), "field 'orders' is missing"),
    "unknown field inside": (put(("geometry", "depth"), 1), "plan.geometry: unknown field 'depth'"),
    "geometry of text": (put(("geometry", "frames"), "4"), "geometry: frames is str, expected an integer"),
    "geometry of floats": (put(("geometry", "frames"), 4.0), "frames is float"),
    "geometry of nothing": (put(("geometry",), None), "plan.geometry: it is null, expected an object"),
    "a huge geometry": (put(("geometry", "frames"), 10**18), "expected fewer than 2^31"),
    "an odd block": (put(("geometry", "block_q"), 100), "block_q is 100"),
    "orders an object": (put(("orders",), {}), "plan.orders: it is an object, expected a list"),
    "no orders": (put(("orders",), []), "plan.orders: there are 0 entries"),
    "an unknown order": (put(("orders", 0, "kind"), "hilbert"), "kind is 'hilbert'"),
    "an order of lists": (put(("orders", 0, "kind"), []), "kind is []"),
    "no patterns": (put(("patterns",), []), "plan.patterns: there are 0 entries, expected 1..4096"),
    "too many patterns": (put(("patterns",), [{}] * 4097), "there are 4097 entries, expected 1..4096"),
    "a pattern twice": (lambda v: v["patterns"].append(v["patterns"][0]), "appears twice"),
    "an unknown kind": (put(("patterns", 0, "kind"), "spiral"), "kind is 'spiral'"),
    "a stranger in a pattern": (put(("patterns", 0, "path"), "/etc/passwd"), "unknown field 'path'"),
    "no such order": (put(("patterns", 0, "order"), 9), "plan.patterns[0]: order is 9, expected 0..2"),
    "order true": (put(("patterns", 0, "order"), True), "order is True"),
    "a negative width": (put(("patterns", 0, "half_width"), -1), "half_width is -1"),
    "a width of text": (put(("patterns", 0, "half_width"), "x"), "half_width is str"),
    "a pattern with remainder": (put(("patterns", 0, "remainder"), 1.0), "it has a remainder, expected"),
    "parts an object": (put(("patterns", 2, "parts"), {}), "parts is an object, expected a list"),
    "no parts": (put(("patterns", 2, "parts"), []), "there are 0 parts"),
    "a part with an order": (put(("patterns", 2, "parts", 0, "order"), 1), "a part has an order"),
    "a union in a union": (put(("patterns", 2, "parts", 0), {"kind": "union"}), "part 0 is union"),
    "a part of text": (put(("patterns", 2, "parts", 0), "diagonal"), "kind is None"),
    "a block too far": (put(("patterns", 2, "parts", 1, "key_blocks"), [77]), "77"),
    "blocks unsorted": (put(("patterns", 2, "parts", 1, "key_blocks"), [1, 0]), "expected sorted and unique"),
    "too many integers": (
        put(("patterns", 2, "parts", 1, "key_blocks"), list(range(2**20))),
        "expected at most 1048576",
    ),
    "sinks too many": (put(("patterns", 3, "sink_frames"), 5), "sink_frames is 5"),
    "a window of two": (put(("patterns", 3, "time"), [1, 2]), "time has 2 entries"),
    "transformers a list": (put(("transformers",), []), "transformers is a list, expected an object"),
    "no transformers": (put(("transformers",), {}), "there are 0 transformers"),
    "a strange name": (put(("transformers", "../up"), TWIN), "'../up'"),
    "layers too many": (put((*T, "model", "layers"), 513), "layers is 513, expected 1..512"),
    "heads too many": (put((*T, "model", "heads"), 257), "heads is 257, expected 1..256"),
    "no class": (put((*T, "model", "transformer_class"), "os.system"), "expected the name of a class"),
    "a patch of two": (put((*T, "model", "patch_size"), [1, 2]), "patch_size has 2 sides"),
    "other layers": (put((*T, "model", "layers"), 3), "choice: it has 2 layers, expected 3"),
    "other heads": (put((*T, "model", "heads"), 1), "choice: it has 3 heads, expected 1"),
    "other bins": (put((*T, "bins"), [0, 0.2, 0.4, 1]), "choice: it has 2 bins, expected 3"),
    "bins too many": (put((*T, "bins"), [n / 65 for n in range(66)]), "there are 66 entries"),
    "bins falling": (put((*T, "bins"), [0, 1, 1]), "expected edges that rise from 0 to 1"),
    "bins of text": (put((*T, "bins"), [0, "0.5", 1]), "an edge of bins is str"),
    "bins short of one": (put((*T, "bins"), [0, 0.5, 0.9]), "expected edges that rise from 0 to 1"),
    "a level of two": (put((*T, "dense_above"), 2), "dense_above is 2.0"),
    "a level of null": (put((*T, "dense_above"), None), "dense_above is NoneType"),
    "choice out of range": (put((*T, "choice", 0, 0, 0), 5), "choice: it holds 5, expected 0..4"),
    "choice negative": (put((*T, "choice", 0, 0, 0), -1), "choice: it holds -1"),
    "choice true": (put((*T, "choice", 0, 0, 0), True), "it holds a truth value, expected integers"),
    "choice a float": (put((*T, "choice", 0, 0, 0), 1.0), "it holds the number 1.0, expected integers"),
    "choice flat": (put((*T, "choice"), [0] * 12), "it has 12 bins, expected 2"),
    "choice ragged": (put((*T, "choice", 0, 0), [0, 1]), "it has 2 heads, expected 3"),
    "choice to broadcast": (put((*T, "choice"), [[[0, 0, 0]]]), "it has 1 bins, expected 2"),
    "betas of text": (put((*T, "betas", 0, 0, 0), "0.5"), "it holds a string, expected numbers or null"),
    "betas infinite": (put((*T, "betas", 0, 0, 0), 1e39), "expected finite numbers or null"),
    "betas too fine": (put((*T, "betas", 0, 0, 0), 0.12345), "it holds 0.12345, expected three decimals"),
    "betas short": (put((*T, "betas"), []), "it has 0 bins, expected 2"),
    "a beta for full": (put((*T, "betas", 0, 0, 1), 0.5), "a number for full, expected null"),
    "a beta for skip": (put((*T, "betas", 0, 1, 1), 0.5), "a number for skip, expected null"),
    "provenance a list": (put(("provenance",), []), "provenance is list"),
    "provenance deep": (put(("provenance",), {"a": [[[[[[[[[[1]]]]]]]]]]}), "nested too deeply"),
    "provenance long": (put(("provenance",), {"a": "x" * 300_000}), "expected at most 262144"),
    "package version": (put(("package_version",), 3), "package_version"),
}  # fmt: skip


@pytest.mark.parametrize("name", FIELDS)
def test_hostile_fields_are_refused_in_a_sentence(name):
    change, sentence = FIELDS[name]
    with pytest.raises(PlanError) as caught:
        read(changed(change))
    assert sentence in str(caught.value)
    assert str(caught.value).startswith("plan")
    assert "expected" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_cells_are_bounded_before_they_are_made():
    value = document()
    part = value["transformers"]["transformer"]
    part["model"].update(layers=512, heads=256)
    part["bins"] = [n / 64 for n in range(65)]
    with pytest.raises(PlanError, match=r"it has 8388608 cells .* expected at most 1048576"):
        read(written(value))


def test_a_changed_file_is_refused():
    value = document()
    value["transformers"]["transformer"]["choice"][0][0][0] = 2
    with pytest.raises(PlanError, match=r"sha256 is .* the file was changed or damaged"):
        read(canonical(value))


def test_it_goes_there_and_back(tmp_path):
    plan = make_plan()
    file = plan.save_pretrained(tmp_path / "a" / "b")
    assert file == tmp_path / "a" / "b" / "plan.json"
    assert os.listdir(file.parent) == ["plan.json"]
    for path in (file, file.parent, str(file.parent)):
        back = SparsePlan.from_pretrained(path)
        assert back == plan
        assert back.hash == plan.hash
        assert back.to_json() == plan.to_json()
        assert back.patterns == plan.patterns
        assert back.provenance == plan.provenance
        assert (back.choice == plan.choice).all()
        assert back.bins == (0, 0.4, 1)
        assert back.betas[0, 0, 0] == 0.5
        assert back.betas[0, 1, 2] == 3
        assert str(back.betas[0, 0, 1]) == "nan"
    assert json.loads(file.read_text())["transformers"]["transformer"]["betas"] == BETAS


def test_a_plan_of_an_older_package_keeps_its_hash():
    value = document()
    value["package_version"] = "0.0.1"
    back = read(written(value))
    assert back.package_version == "0.0.1"
    assert back.hash == value["sha256"]


def test_two_transformers_share_patterns(tmp_path):
    one, two = (
        make_plan(),
        SparsePlan.uniform(MODEL, GEOMETRY, Pattern.diagonal(half_width=31, remainder=1.0)),
    )
    both = SparsePlan({"transformer": one.for_transformer(), "transformer_2": two.for_transformer()})
    both.save_pretrained(tmp_path)
    back = SparsePlan.from_pretrained(tmp_path)
    assert back.names == ("transformer", "transformer_2")
    assert back == both
    first, second = (back.for_transformer(name) for name in back.names)
    assert first.pool is second.pool
    assert first.patterns == second.patterns
    assert second.pattern(0, 1, 2) == Pattern.diagonal(half_width=31, remainder=1.0)
    with pytest.raises(PlanError, match="it has 2 transformers, expected for_transformer"):
        back.bin_of(0.5)
    with pytest.raises(
        PlanError, match="no transformer 'transformer_3', expected one of transformer, transformer_2"
    ):
        back.for_transformer("transformer_3")


def test_block_masks_are_never_saved(tmp_path):
    import numpy as np

    mask = np.ones((GEOMETRY.query_blocks, GEOMETRY.key_blocks), dtype=bool)
    layer = LayerPlan.from_block_masks(GEOMETRY, [mask] * 3)
    plan = SparsePlan.from_layers(MODEL, [[layer, layer]])
    with pytest.raises(PlanError, match="it holds block masks, expected patterns: controls are not saved"):
        plan.save_pretrained(tmp_path)
    assert os.listdir(tmp_path) == []
    assert plan.density() == 1
    assert len(plan.hash) == 64


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="plan: there is no file"):
        SparsePlan.from_pretrained(tmp_path)
    with pytest.raises(
        FileNotFoundError, match="plan: there is no '/no/such/folder', expected a folder, a file or"
    ):
        SparsePlan.from_pretrained("/no/such/folder")
    os.mkfifo(tmp_path / "plan.json")
    with pytest.raises(PlanError, match="is not a regular file"):
        SparsePlan.from_pretrained(tmp_path)
    with pytest.raises(PlanError, match="is a file, expected a folder"):
        make_plan().save_pretrained(tmp_path / "plan.json")
    (tmp_path / "big").mkdir()
    with open(tmp_path / "big" / "plan.json", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(PlanError, match="the file has 1099511627776 bytes, expected at most 16777216"):
        SparsePlan.from_pretrained(tmp_path / "big")
    with pytest.raises(PlanError, match="is not a regular file"):
        read_bytes("/dev/zero")


def test_a_hub_repository_is_asked_for_the_file(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    plan = make_plan()
    file = plan.save_pretrained(tmp_path)
    asked = []
    monkeypatch.setattr(
        hub, "hf_hub_download", lambda *args, **kwargs: asked.append((args, kwargs)) or str(file)
    )
    back = SparsePlan.from_pretrained("someone/plans", revision="v1", token="t", local_files_only=True)
    assert back == plan
    assert asked[0][0] == ("someone/plans", "plan.json")
    assert asked[0][1]["revision"] == "v1"
    assert asked[0][1]["local_files_only"] is True


def test_what_the_hub_lacks_is_a_sentence(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def refuse(*args, **kwargs):
        raise hub.errors.LocalEntryNotFoundError("no such file in the cache.\nSecond line.")

    monkeypatch.setattr(hub, "hf_hub_download", refuse)
    with pytest.raises(FileNotFoundError) as caught:
        SparsePlan.from_pretrained("someone/plans")
    assert str(caught.value) == (
        "plan: there is no folder 'someone/plans', and the hub has no plan.json for it: no such file in the cache."
    )
    with pytest.raises(FileNotFoundError, match="there is no 'my_plan', expected a folder, a file or a hub"):
        SparsePlan.from_pretrained("my_plan")  # a folder's name with a slip: nobody is asked


def test_provenance_takes_plain_values_only():
    part = make_plan().for_transformer()
    for bad in ({1: 2}, {"a": object()}, {"a": float("nan")}, {"a": {2: 3}}, {"a": -(10**19)}):
        with pytest.raises(PlanError, match="provenance"):
            SparsePlan(part, bad)
    notes = {"a": [1, (2, 3)], "b": {"c": None}}
    plan = SparsePlan(part, notes)
    notes["b"]["c"] = 7
    assert plan.provenance == {"a": [1, [2, 3]], "b": {"c": None}}


def test_the_document_is_not_changed_by_reading():
    value = document()
    before = copy.deepcopy(value)
    SparsePlan.from_json(value)
    assert value == before


def test_pushing_makes_the_repository_and_sends_the_file(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    sent = []

    class Api:
        def __init__(self, token=None):
            sent.append(("token", token))

        def create_repo(self, repo_id, *, private, exist_ok):
            sent.append(("create", repo_id, private, exist_ok))
            return hub.RepoUrl(f"https://huggingface.co/someone/{repo_id}")

        def upload_file(self, **arguments):
            sent.append(("upload", arguments))

    monkeypatch.setattr(hub, "HfApi", Api)
    file = make_plan().save_pretrained(
        tmp_path / "my-plan", push_to_hub=True, token="t", private=True, revision="v2"
    )
    assert sent[:2] == [("token", "t"), ("create", "my-plan", True, True)]
    expected = {
        "path_or_fileobj": file,
        "path_in_repo": "plan.json",
        "repo_id": "someone/my-plan",
        "revision": "v2",
    }
    assert sent[2] == ("upload", expected)
    with pytest.raises(TypeError, match="token is given, expected it with push_to_hub=True only"):
        make_plan().save_pretrained(tmp_path, token="t")
