"""The mixture from tars: the samples of the shards' epochs, exactly, and what is refused."""

import io
import json
import tarfile
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest

from flan_moe.data.mixing.curriculum import Curriculum
from flan_moe.data.mixing.spec import MixtureSpec, SubMixture
from flan_moe.data.storage.shards import ShardError, read_webdataset, write_webdataset
from flan_moe.data.streaming.loader import dataloader
from flan_moe.data.streaming.web_loader import webdataset_loader
from flan_moe.data.streaming.web_mixture import Tar

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

SPEC = MixtureSpec(
    name="web",
    sub_mixtures={
        "a": SubMixture(weight=0.7, mixtures=("muffin", "cot"), cap=30),
        "b": SubMixture(weight=0.3, mixtures=("niv2",), temperature=2.0),
    },
)
OPTIONS = {
    "mixture": Curriculum.reweighted(SPEC, {430: {"b": 2.0}}),
    "epoch_size": 300,
    "batch_size": 24,
    "pack": False,
}


def examples(loader):
    """How often each example comes in an epoch."""
    return Counter(
        (task, tuple(token for token in row if token))
        for batch in loader
        for task, row in zip(batch["task_ids"].tolist(), batch["input_ids"].tolist(), strict=True)
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_every_epoch_has_the_samples_of_the_shards_epoch(mini, workers):
    shards = dataloader(mini, **OPTIONS)
    tars = webdataset_loader(mini, num_workers=workers, **OPTIONS)
    for _ in range(3):
        assert examples(tars) == examples(shards)
    assert tars.seen.counts() == shards.seen.counts()
    later = webdataset_loader(mini, first_epoch=3, **OPTIONS)
    assert examples(later) == examples(shards)


def test_weights_too(mini):
    options = {"weights": {"muffin": 4, "t0_sf": 3, "niv2": 2, "cot": 1}, "epoch_size": 600}
    shards = dataloader(mini, batch_size=24, pack=False, **options)
    tars = webdataset_loader(mini, batch_size=24, pack=False, **options)
    assert examples(tars) == examples(shards)


def test_batches_mix_tasks_and_repeat_with_the_seed(mini):
    def batches(**changes):
        loader = webdataset_loader(mini, **{**OPTIONS, **changes})
        return [batch["task_ids"].tolist() for batch in loader]

    first = batches()
    assert np.mean([len(set(batch)) for batch in first]) > 6
    assert first == batches()
    assert first != batches(seed=1)
    assert first != batches(first_epoch=1)
    assert [len(batch) for batch in first] == [24] * 12 + [12]


@pytest.mark.parametrize(("ranks", "workers"), [(1, 3), (2, 1), (2, 2), (4, 2), (3, 5)])
def test_ranks_divide_an_epoch_and_have_as_many_batches(mini, ranks, workers):
    dataset = webdataset_loader(mini, **OPTIONS).dataset
    for epoch in range(3):
        sizes = np.zeros((workers, ranks), int)
        for segment, chosen in dataset.plan.choose(epoch, 0):
            shares = dataset.divide(epoch, segment, chosen, ranks=ranks, workers=workers)
            bases = np.cumsum([0] + [t.num_samples for t in dataset.plan.tables.values()])
            expected = bases[chosen.stream] + chosen.sample
            assert sorted(np.concatenate(shares)) == sorted(expected)
            sizes += np.array([len(share) for share in shares]).reshape(workers, ranks)
        assert sizes.sum() == 300
        assert np.all(sizes == sizes[:, :1]), "the same on all ranks"


def test_tars_over_http(mini, tmp_path):
    handler = partial(SimpleHTTPRequestHandler, directory=str(mini))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        tars = webdataset_loader(url, cache=tmp_path, **OPTIONS)
        assert examples(tars) == examples(dataloader(mini, **OPTIONS))
    finally:
        server.shutdown()
        server.server_close()


def test_a_directory_without_tars_is_refused(mini_copy):
    manifest = json.loads((mini_copy / "manifest.json").read_text())
    manifest["files"] = {k: v for k, v in manifest["files"].items() if "webdataset" not in k}
    (mini_copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="build the data directory with --webdataset"):
        webdataset_loader(mini_copy, batch_size=8)


def test_a_damaged_tar_is_refused(mini_copy):
    tar = mini_copy / "webdataset" / "train" / "cot" / "shard-00000.tar"
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(data)
    with pytest.raises(ShardError, match=r"cot/shard-00000\.tar: damaged"):
        webdataset_loader(mini_copy, batch_size=8, verify=True)
    tar.write_bytes(data[:-512])
    with pytest.raises(ShardError, match=r"cot/shard-00000\.tar: \d+ bytes"):
        webdataset_loader(mini_copy, batch_size=8)


@pytest.mark.parametrize("name", ["../000000001.json", "/000000001.json", "a/000000001.json"])
def test_members_of_other_names_are_refused(tmp_path, name):
    file = tmp_path / "shard-00000.tar"
    tokens = np.array([1, 2], np.uint16)
    sample = {"input_ids": tokens, "labels": tokens, "task": 0, "template": "zs_opt"}
    write_webdataset(tmp_path / "good", [sample])
    with (
        tarfile.open(tmp_path / "good" / file.name) as good,
        tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        data = good.extractfile("000000000.json").read()
        for member in ("000000000.json", name):
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    tar = Tar(file=file, source=None, size=0, sha256="", samples=2)
    with pytest.raises(ShardError, match=r"member '.*'; expected names like 000000012\.json"):
        list(tar.read({1: 1}))
    shard = {"name": file.name, "bytes": file.stat().st_size, "sha256": "", "samples": 2}
    index = {"format": "flan-moe-webdataset", "version": 1, "shards": [shard]}
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(ShardError, match=r"member '.*'; expected names like"):
        list(read_webdataset(tmp_path))
