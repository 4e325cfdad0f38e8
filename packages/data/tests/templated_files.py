"""The same rows in every layout in which templated Flan data are passed around."""

import gzip
import json

SETTINGS = ("zs_opt", "zs_noopt", "fs_opt", "fs_noopt")
SOURCES = {"muffin": "Flan2021", "t0_sf": "P3", "niv2": "NIv2", "cot": "CoT"}
SPELT = {"rte": "super_glue/rte:1.0.2"}  # how a dump spells the name of a task


def rows(task, mixture="muffin", count=12):
    """Row i has setting i modulo four."""
    return [
        {
            "task": task,
            "mixture": mixture,
            "setting": SETTINGS[i % 4],
            "index": i % 10,
            "prompt": f"{task}: question {i}?\nOPTIONS:\n- yes\n- no",
            "target": ("yes", "no")[i % 2],
        }
        for i in range(count)
    ]


def passthrough(row):
    return {
        "inputs": row["prompt"],
        "targets": row["target"],
        "_template_idx": row["index"],
        "_task_source": SOURCES[row["mixture"]],
        "_task_name": SPELT.get(row["task"], row["task"]),
        "_template_type": row["setting"],
    }


def submix(row):
    return {
        "inputs": row["prompt"],
        "targets": row["target"],
        "task_source": SOURCES[row["mixture"]],
        "task_name": SPELT.get(row["task"], row["task"]),
        "template_type": row["setting"],
    }


def source_target(row):
    return {
        "source": row["prompt"],
        "target": row["target"],
        "task_name": SPELT.get(row["task"], row["task"]),
        "task_source": SOURCES[row["mixture"]],
        "template_type": row["setting"],
        "template_idx": row["index"],
        "split": "train",
    }


def by_file(row):
    return {"inputs": row["prompt"], "targets": row["target"], "task": row["task"]}


def rendered(row):
    return {
        "inputs_pretokenized": row["prompt"] + "\n",
        "targets_pretokenized": "\n" + row["target"],
        "answer_choices": ["yes", "no"],
        "inputs": [3, 4],
        "targets": [5],
    }


def write_rows(path, records):
    """Write as the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(records), path, row_group_size=5)
        return path
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path
