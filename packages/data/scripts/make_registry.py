"""Write the packaged task registry from published lists of the Flan collection.

    python make_registry.py --tables TABLES --flan FLAN --out src/flan_moe/data/registry/tasks.jsonl

TABLES holds ``flan_tasks.json``, ``flan_tasks_extra.json``, ``natural_instructions_index.json.xz``
(names, sizes, splits and licences read from google-research/FLAN and allenai/natural-instructions).
FLAN is a checkout of google-research/FLAN at e9e4ec6e2701: its ``flan_collection_info.csv`` gives
source, category and languages of every task, and ``constants_niv2.py`` the sizes of the Natural
Instructions tasks that the index knows by name only. The result needs neither.
"""

from __future__ import annotations

import argparse
import ast
import csv
import json
import lzma
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Task = dict[str, Any]

# What each Muffin task is loaded as (tensorflow-datasets name and version in
# flan/v2/task_configs_v1.py and task_configs.py); templated dumps use it as the task's name.
TFDS = {
    "aeslc": "aeslc:1.0.0",
    "ag_news_subset": "ag_news_subset:1.0.0",
    "anli_r1": "anli/r1:0.1.0",
    "anli_r2": "anli/r2:0.1.0",
    "anli_r3": "anli/r3:0.1.0",
    "arc_challenge": "ai2_arc/ARC-Challenge:1.0.0",
    "arc_easy": "ai2_arc/ARC-Easy:1.0.0",
    "bool_q": "bool_q:1.0.0",
    "cb": "super_glue/cb:1.0.2",
    "cnn_dailymail": "cnn_dailymail:3.4.0",
    "cola": "glue/cola:2.0.0",
    "common_gen": "gem/common_gen:1.1.0",
    "copa": "super_glue/copa:1.0.2",
    "coqa": "coqa:1.0.0",
    "cosmos_qa": "cosmos_qa:1.0.0",
    "dart": "gem/dart:1.1.0",
    "definite_pronoun_resolution": "definite_pronoun_resolution:1.1.0",
    "drop": "drop:2.0.0",
    "e2e_nlg": "gem/e2e_nlg:1.1.0",
    "fix_punct": "para_crawl/enda:1.2.0",
    "gigaword": "gigaword:1.2.0",
    "glue_mrpc": "glue/mrpc:2.0.0",
    "glue_qqp": "glue/qqp:2.0.0",
    "hellaswag": "hellaswag:1.1.0",
    "imdb_reviews": "imdb_reviews/plain_text:1.0.0",
    "lambada": "lambada:1.0.0",
    "math_dataset": "math_dataset/algebra__linear_1d:1.0.0",
    "mnli_matched": "glue/mnli:2.0.0",
    "mnli_mismatched": "glue/mnli:2.0.0",
    "multi_news": "multi_news:1.0.0",
    "multirc": "super_glue/multirc:1.0.2",
    "natural_questions": "natural_questions_open:1.0.0",
    "newsroom": "newsroom:1.0.0",
    "openbookqa": "openbookqa:0.1.0",
    "opinion_abstracts_idebate": "opinion_abstracts/idebate:1.0.0",
    "opinion_abstracts_rotten_tomatoes": "opinion_abstracts/rotten_tomatoes:1.0.0",
    "para_crawl_enes": "para_crawl/enes:1.2.0",
    "paws_wiki": "paws_wiki:1.1.0",
    "piqa": "piqa:1.0.0",
    "qnli": "glue/qnli:2.0.0",
    "qrecc": "q_re_cc:1.0.0",
    "quac": "quac:1.0.0",
    "record": "super_glue/record:1.0.2",
    "rte": "super_glue/rte:1.0.2",
    "samsum": "samsum:1.0.0",
    "sentiment140": "sentiment140:1.0.0",
    "snli": "snli:1.1.0",
    "squad_v1": "squad/v1.1:3.0.0",
    "squad_v2": "squad/v2.0:3.0.0",
    "sst2": "glue/sst2:2.0.0",
    "story_cloze": "story_cloze/2016:1.0.0",
    "stsb": "glue/stsb:2.0.0",
    "trec": "trec:1.0.0",
    "trivia_qa": "trivia_qa/rc:1.1.0",
    "true_case": "para_crawl/enda:1.2.0",
    "unified_qa_science_inst": "unified_qa/ai2_science_middle:1.0.0",
    "web_nlg_en": "gem/web_nlg_en:1.1.0",
    "wic": "super_glue/wic:1.0.2",
    "wiki_dialog": "wiki_dialog:1.0.0",
    "wiki_lingua_english_en": "gem/wiki_lingua_english_en:1.1.0",
    "winogrande": "winogrande:1.1.0",
    "wmt14_enfr": "wmt14_translate/fr-en:1.0.0",
    "wmt16_translate_csen": "wmt16_translate/cs-en:1.0.0",
    "wmt16_translate_deen": "wmt16_translate/de-en:1.0.0",
    "wmt16_translate_fien": "wmt16_translate/fi-en:1.0.0",
    "wmt16_translate_roen": "wmt16_translate/ro-en:1.0.0",
    "wmt16_translate_ruen": "wmt16_translate/ru-en:1.0.0",
    "wmt16_translate_tren": "wmt16_translate/tr-en:1.0.0",
    "wnli": "glue/wnli:2.0.0",
    "word_segment": "para_crawl/enda:1.2.0",
    "wsc": "super_glue/wsc.fixed:1.0.2",
    "xsum": "huggingface:xsum",
    "yelp_polarity_reviews": "yelp_polarity_reviews:0.2.0",
}
# Sources that several tasks are made from do not name one of them. glue/mnli stands for both
# tasks of it, which differ in their test split only.
SHARED_SOURCES = {"para_crawl/enda:1.2.0"}
NOT_THE_NAME_OF = {"mnli_mismatched"}

OTHER_SOURCES = {
    "dmcc_python": "deepmind/code_contests",
    "dr_repair_error_comments": "michiyasunaga/DrRepair",
    "dr_repair_line_numbers": "michiyasunaga/DrRepair",
    "dr_repair_no_errors": "michiyasunaga/DrRepair",
    "dr_repair_plain_code": "michiyasunaga/DrRepair",
    "task_master": "google-research-datasets/Taskmaster",
    "trivia_qa_wiki_missing": "trivia_qa",
}

# Licences of the data sets themselves: as Natural Instructions states them for tasks of the same
# source, or as the data set's own repository does. Absent: not known.
LICENCES = {
    "adversarial_qa": ["MIT"],
    "ag_news_subset": [
        "Dedicated Statement (http://www.di.unipi.it/~gulli/AG_corpus_of_news_articles.html)"
    ],
    "ai2_arc": ["CC BY-SA 4.0"],
    "amazon_polarity": ["Apache 2.0"],
    "anli": ["CC BY-NC 4.0"],
    "aqua": ["Apache 2.0"],
    "bool_q": ["CC BY-SA 3.0"],
    "coqa": ["CC BY-SA 4.0", "MSR-LA", "RACE license", "Apache"],
    "cos_e": ["BSD 3-Clause"],
    "cosmos_qa": ["CC BY 4.0"],
    "creak": ["MIT"],
    "dbpedia_14": ["CC BY-SA", "GNU Free Documentation 2.0"],
    "dream": ["Dedicated License (https://github.com/nlpdata/dream/blob/master/license.txt)"],
    "ecqa": ["CDLA Sharing"],
    "esnli": ["MIT"],
    "gem/common_gen": ["MIT"],
    "gem/dart": ["MIT"],
    "gem/e2e_nlg": ["CC BY-SA 4.0"],
    "gigaword": ["MIT"],
    "glue/mnli": ["OANC"],
    "glue/qqp": ["Quora Terms of Service (https://www.quora.com/about/tos)"],
    "gsm8k": ["MIT"],
    "kilt_tasks/hotpotqa": ["CC BY-SA 4.0"],
    "math_dataset": ["Apache 2.0"],
    "michiyasunaga/DrRepair": ["MIT"],
    "natural_questions_open": ["CC BY-SA 3.0"],
    "para_crawl": ["CC0"],
    "paws_wiki": [
        "Dedicated License (https://github.com/google-research-datasets/paws/blob/master/LICENSE)"
    ],
    "piqa": ["AFL 3.0"],
    "qasc": ["CC BY 4.0"],
    "qed": ["CC BY-SA 3.0", "GFDL"],
    "quail": ["CC BY-NC-SA 4.0"],
    "quarel": ["CC BY 4.0"],
    "quartz": ["CC BY 4.0"],
    "ropes": ["CC BY 4.0"],
    "samsum": ["CC BY-NC-ND 4.0"],
    "sciq": ["CC BY-NC 3.0"],
    "sensemaking": ["CC BY-SA 4.0"],
    "snli": ["CC BY-SA 4.0"],
    "strategyqa": ["MIT"],
    "super_glue/cb": ["CC BY-SA 3.0"],
    "super_glue/copa": ["BSD 2-Clause"],
    "super_glue/multirc": ["CCG licence (https://github.com/CogComp/multirc/blob/master/LICENSE)"],
    "super_glue/wsc.fixed": ["CC BY 4.0"],
    "trivia_qa": ["Apache 2.0"],
    "web_questions": ["CC BY 4.0"],
    "winogrande": ["Apache 2.0"],
    "wiqa": ["Apache 2.0"],
}

LANGUAGES = {
    "para_crawl_enes": ["English", "Spanish"],  # the CSV says English
    "wmt14_enfr": ["English", "French"],
    "wmt16_translate_csen": ["Czech", "English"],
    "wmt16_translate_deen": ["English", "German"],
    "wmt16_translate_fien": ["English", "Finnish"],
    "wmt16_translate_roen": ["English", "Romanian"],
    "wmt16_translate_ruen": ["English", "Russian"],
    "wmt16_translate_tren": ["English", "Turkish"],
}


def main() -> None:
    """Read the tables, write one task per line."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("tables", "flan", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    arguments = parser.parse_args()
    names = json.loads((arguments.tables / "flan_tasks.json").read_text())
    extra = json.loads((arguments.tables / "flan_tasks_extra.json").read_text())
    index_file = arguments.tables / "natural_instructions_index.json.xz"
    index = json.loads(lzma.decompress(index_file.read_bytes()))
    csv_rows = list(csv.DictReader((arguments.flan / "flan/v2/flan_collection_info.csv").open()))
    sizes = _niv2_sizes(arguments.flan / "flan/v2/constants_niv2.py")
    tasks = [
        *_muffin(names["muffin"], extra),
        *_t0_sf(names["t0_sf"], extra),
        *_niv2(names["niv2"], extra, index, csv_rows, sizes),
        *_cot(names["cot"], extra),
    ]
    tasks += _inversions(tasks, extra)
    tasks += _excluded(extra["niv2_excluded_mmlu"], index)
    with arguments.out.open("w", encoding="utf-8") as stream:
        for task in tasks:
            kept = {key: value for key, value in task.items() if value not in (None, [], {})}
            stream.write(json.dumps(kept, ensure_ascii=False, separators=(",", ":")) + "\n")
    print(f"{len(tasks)} tasks, {arguments.out.stat().st_size:,} bytes")


def _muffin(names: Iterable[str], extra: Task) -> Iterator[Task]:
    groups = extra["muffin_groups"]
    dialog = groups["dialog"]
    program = groups["program_synthesis_unreleased"]
    missing = {*groups["dialog_unreleased"], *program, *groups["flan2021_listed_but_not_in_code"]}
    for name in names:
        tfds = TFDS.get(name)
        source = _without_version(tfds) if tfds else OTHER_SOURCES[name]
        aliases = [tfds] if tfds and tfds not in SHARED_SOURCES else []
        category = "mnli" if name.startswith("mnli_") else name
        yield {
            "name": name,
            "mixture": "muffin",
            "sub_mixture": "dialog"
            if name in dialog
            else "program_synthesis"
            if name in program
            else "flan2021",
            "types": extra["muffin_generic_category"][category][:1],
            "source": source,
            "aliases": [] if name in NOT_THE_NAME_OF else aliases,
            "licences": LICENCES.get(source) or LICENCES.get(source.partition("/")[0]),
            "languages": LANGUAGES.get(name, ["English"]),
            "size": _num_cases(name, extra),
            "unreleased": name in missing or None,
        }


def _t0_sf(names: Iterable[str], extra: Task) -> Iterator[Task]:
    for name in names:
        template = extra["t0_sf_promptsource"][name]
        parts = (template["dataset"], template.get("subset"))
        source = "/".join(part for part in parts if part)
        yield {
            "name": name,
            "mixture": "t0_sf",
            "sub_mixture": "t0",
            "types": extra["muffin_generic_category"][name],
            "source": source,
            "aliases": [f"t0_task_adaptation:{name}"],
            "licences": LICENCES.get(source) or LICENCES.get(template["dataset"]),
            "languages": ["English"],
            "size": extra["t0_sf_train_size"][name],
            "form": extra["t0_sf_task_type"][name].removeprefix("t0_"),
            "template": {key: template.get(key) for key in ("dataset", "subset", "template")},
        }


def _niv2(
    names: Iterable[str], extra: Task, index: Task, csv_rows: list[Task], sizes: dict[str, int]
) -> Iterator[Task]:
    listed = {
        _flan_name(row["Specific Task Category"]): row
        for row in csv_rows
        if row["Source"] == "NIv2"
    }
    of_source: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for entry in index.values():
        for source in entry.get("source", ()):
            of_source[source].add(tuple(_known(entry["licence"])))
    for name in names:
        entry, row = index[name], listed[_flan_name(name)]
        source = (entry.get("source") or [row["Dataset"]])[0]
        licences = _known(entry.get("licence", ()))
        if "licence" not in entry and len(of_source[source]) == 1:
            licences = list(next(iter(of_source[source])))
        spoken = entry.get("input_language", []) + entry.get("output_language", [])
        alias = extra["niv2_flan_alias"].get(name)
        yield {
            "name": name,
            "mixture": "niv2",
            "sub_mixture": "niv2",
            "types": entry.get("categories") or [row["Generic Task Category"]],
            "source": source,
            "aliases": [alias] if alias else [],
            "licences": licences,
            "languages": sorted(set(spoken or ast.literal_eval(row["Languages"]))),
            "size": entry.get("n_instances") or sizes[_flan_name(name)],
            "split": extra["niv2_default_split"][name],
        }


def _cot(names: Iterable[str], extra: Task) -> Iterator[Task]:
    for name in names:
        source = name.partition("_")[2]
        # flan_collection_info.csv says stream_ where the code says cot_; files bear the bare name.
        spellings = {f"cot_{source}", f"stream_{source}"} - {name}
        listed = next(key for key in (name, *spellings) if key in extra["muffin_generic_category"])
        yield {
            "name": name,
            "mixture": "cot",
            "sub_mixture": "cot",
            "types": extra["muffin_generic_category"][listed][:1],
            "source": source,
            "aliases": sorted(spellings),
            "licences": LICENCES.get(source),
            "languages": ["English"],
            "size": _num_cases(name, extra),
        }


def _inversions(tasks: list[Task], extra: Task) -> Iterator[Task]:
    """Twins of chain-of-thought and dialog tasks: input and answer change places."""
    known = {task["name"]: task for task in tasks}
    for name in extra["input_inversion"]["cot"] + extra["input_inversion"]["dialog"]:
        original = known[name.replace("_input_inversion_", "_").removesuffix("_input_inversion")]
        spellings = [f"{alias}_ii" for alias in (original["name"], *original["aliases"])]
        if original["mixture"] == "cot":
            spellings += [
                alias.replace("_", "_input_inversion_", 1) for alias in original["aliases"]
            ]
            types = extra["muffin_generic_category"]["cot_gsm8k"][1:]
        else:
            types = extra["muffin_generic_category"][original["name"]][1:]
            spellings = [f"{original['name']}_ii"]
        yield {
            **{key: original.get(key) for key in ("mixture", "sub_mixture", "source")},
            "name": name,
            "part": "inversion",
            "types": types,
            "aliases": spellings,
            "licences": original.get("licences"),
            "languages": original["languages"],
            "size": _num_cases(name, extra),
            "twin": original["name"],
        }


def _excluded(names: Iterable[str], index: Task) -> Iterator[Task]:
    """Natural Instructions tasks made from MMLU, which the collection leaves out."""
    for name in names:
        entry = index[name]
        yield {
            "name": name,
            "mixture": "niv2",
            "sub_mixture": "niv2",
            "part": "excluded",
            "types": entry["categories"],
            "source": entry["source"][0],
            "licences": _known(entry["licence"]),
            "languages": sorted({*entry["input_language"], *entry["output_language"]}),
            "size": entry["n_instances"],
            "split": entry["default_split"],
        }


def _without_version(tfds: str) -> str:
    """``xsum`` of ``huggingface:xsum``, ``anli/r1`` of ``anli/r1:0.1.0``."""
    return tfds.removeprefix("huggingface:").partition(":")[0]


def _known(licences: Iterable[str]) -> list[str]:
    return [licence for licence in licences if licence != "Unknown"]


def _num_cases(name: str, extra: Task) -> int | None:
    cases = extra["num_cases"].get(name)
    return cases["zero_shot"] if cases else None


def _flan_name(name: str) -> str:
    """How FLAN spells a Natural Instructions task: dashes replaced, cut at the first dot."""
    return re.sub("-", "_", name.partition(".")[0])


def _niv2_sizes(file: Path) -> dict[str, int]:
    """``number_examples`` of every task; the module is parsed, not run."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "NATINST_META_DATA":
            table = ast.literal_eval(node.value)
            return {_flan_name(name): entry["number_examples"] for name, entry in table.items()}
    raise ValueError(f"{file}: expected NATINST_META_DATA")


if __name__ == "__main__":
    main()
