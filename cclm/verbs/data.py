"""`cclm data leaks | index`: what of a test is in the training's shards; what a folder of pictures holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from cclm.verbs.inputs import codes

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def leaks_options(parser: ArgumentParser) -> None:
    parser.add_argument("train", nargs="+", type=str, help="split folders of shards, tars or patterns")
    parser.add_argument("--task", type=str, required=True, help="xvnli, xflickrco .. or a task file of your own")
    parser.add_argument("--data", type=Path, default=Path("."), help="folder of the benchmark's files")
    parser.add_argument("--languages", type=str, default=None, help="de,fr; all that the test has by default")
    parser.add_argument("--protocol", type=str, default=None, help="the task's first by default")
    parser.add_argument("--split", type=str, default=None, help="another split than the protocol's test, as train_100")
    parser.add_argument("--images", type=Path, default=None, help="the test's pictures, to be known by their bytes too")
    parser.add_argument("--partial", action="store_true", help="take a test file with other counts as it is")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.add_argument("--strict", action="store_true", help="exit status 1 where anything leaks")


def leaks(given: Namespace) -> None:
    from cclm.data.shards import list_shards, read_records
    from cclm.evaluation import task as tasks
    from cclm.evaluation.leaks import find_leaks
    from cclm.evaluation.pictures import open_pictures

    list_shards(given.train)  # before the tests are read
    task, data = tasks.find(given.task), tasks.DataFolder(given.data)
    protocol = task.protocol(given.protocol)
    split = given.split or protocol.split
    languages = codes(given.languages) or (task.splits[split].languages if split in task.splits else task.languages)
    if given.split:
        tests = [task.under(protocol, data, language, split) for language in languages]
    else:
        tests = [task.test_set(data, language, protocol, whole=not given.partial) for language in languages]
    if given.images is None:
        found = find_leaks(read_records(given.train), tests)
    else:
        with open_pictures(given.images) as pictures:
            found = find_leaks(read_records(given.train), tests, pictures)
    print(
        json.dumps([leak.to_dict() for leak in found], ensure_ascii=False) if given.json else "\n".join(map(str, found))
    )
    if given.strict and any(found):
        raise SystemExit(1)


def index_options(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="downloaded pictures, as files or in zips")
    parser.add_argument("--output", type=Path, default=None, help="a JSON file: name, bytes, checksum, size of each")
    parser.add_argument("--check", type=Path, default=None, help="such a file, to be compared with the folder as it is")


def index(given: Namespace) -> None:
    from cclm.data.inventory import Inventory, take_inventory

    if (given.output is None) == (given.check is None):
        raise ValueError("data index: give --output index.json to write, or --check index.json to compare with")
    before = Inventory.load(given.check) if given.check is not None else None
    found = take_inventory(given.folder)
    print(f"{given.folder}: {found}")
    if before is None:
        found.save(given.output)
    elif changes := before.differences(found):
        raise ValueError(f"{given.folder} is not what {given.check} says: {'; '.join(changes)}; fetch these again")
